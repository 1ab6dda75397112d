"""Written pages found by comparing digests: works on any kernel and for any kind of memory, and reads all of it.

The digests are of what the caller took (`taken`), not of what was there when we looked: a page may change between the
two, and change back. So a page that the caller didn't report taken stays dirty, and one whose content is what the
caller has isn't, whatever happened in between. What is returned as dirty counts as not taken from then on: until it is
reported, the caller has nothing there.

The cost is reading and hashing everything in each round, 1 to 2 s per GiB, in the frozen window too. It is meant
for what the other trackers can't answer for: shared memory, processes that can't be injected into, old kernels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from blake3 import blake3

from runtime.tracking import population
from runtime.tracking.pagemap import PAGE
from runtime.tracking.ranges import Range, merged, without
from runtime.tracking.tracker import Select
from runtime.tracking.vmas import Vma, mappings, programs
from runtime.tracking.watching import Watched, Watching

_DIGEST = 16
_CHUNK_PAGES = 256
_CHUNK = _CHUNK_PAGES * PAGE
_UNKNOWN = bytes(_DIGEST)


@dataclass(slots=True)
class _Process(Watched):
    chunks: dict[int, bytearray] = field(default_factory=dict)
    """By address // _CHUNK: a digest for each page, zeros where the caller has nothing."""

    def digest(self, page: int) -> bytes:
        chunk = self.chunks.get(page // _CHUNK)
        if chunk is None:
            return _UNKNOWN
        at = page % _CHUNK // PAGE * _DIGEST
        return bytes(chunk[at : at + _DIGEST])

    def note(self, page: int, digest: bytes) -> None:
        chunk = self.chunks.get(page // _CHUNK)
        if chunk is None:
            chunk = self.chunks[page // _CHUNK] = bytearray(_CHUNK_PAGES * _DIGEST)
        at = page % _CHUNK // PAGE * _DIGEST
        chunk[at : at + _DIGEST] = digest


class Compare(Watching[_Process]):
    """A `Tracker`."""

    name = "compare"
    compares = True

    def __init__(self, select: Select = programs) -> None:
        super().__init__(_Process, select)
        # A key of our own: nobody can prepare two pages with the same digest.
        self._key = os.urandom(32)
        self._zeros = self._digest(bytes(PAGE))

    def _digest(self, page: bytes | memoryview) -> bytes:
        return blake3(page, key=self._key).digest(length=_DIGEST)

    def taken(self, pid: int, start: int, data: bytes | memoryview) -> None:
        process = self._processes.get(pid)
        if process is None:
            return
        view = memoryview(data)
        for at in range(0, len(view) - PAGE + 1, PAGE):
            process.note(start + at, self._digest(view[at : at + PAGE]))

    def dirty(self, pid: int, *, frozen: bool = False) -> list[Range]:
        try:
            process = self._process(pid)
            vmas = [vma for vma in mappings(pid) if self._select(vma)]
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with population.opened(pid) as pagemap:
                    process.identity.check()
                    self._forget_unmapped(process, vmas)
                    process.vmas = vmas
                    found = merged(
                        part
                        for vma in vmas
                        for part in self._changed(process, vma, memory, pagemap)
                    )
                    for start, end in found:
                        self._forget(process, start, end)
                    return found
            finally:
                os.close(memory)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self._gone(pid) from error

    def _forget_unmapped(self, process: _Process, vmas: list[Vma]) -> None:
        """The caller has dropped what isn't mapped any more: should the same come back there, it is new."""
        before = merged((vma.start, vma.end) for vma in process.vmas)
        for start, end in without(before, merged((vma.start, vma.end) for vma in vmas)):
            self._forget(process, start, end)

    def _forget(self, process: _Process, start: int, end: int) -> None:
        """The caller has nothing there."""
        for chunk in self._known_chunks(process, start, end):
            begin, until = max(start, chunk * _CHUNK), min(end, (chunk + 1) * _CHUNK)
            if until - begin == _CHUNK:
                del process.chunks[chunk]
                continue
            first, count = begin % _CHUNK // PAGE, (until - begin) // PAGE
            unknown = bytes(count * _DIGEST)
            process.chunks[chunk][first * _DIGEST : (first + count) * _DIGEST] = unknown

    @staticmethod
    def _known_chunks(process: _Process, start: int, end: int) -> list[int]:
        first, last = start // _CHUNK, (end - 1) // _CHUNK
        if last - first > len(process.chunks):
            return [chunk for chunk in process.chunks if first <= chunk <= last]
        return [chunk for chunk in range(first, last + 1) if chunk in process.chunks]

    def _changed(self, process: _Process, vma: Vma, memory: int, pagemap: int) -> list[Range]:
        whole = (vma.start, vma.end)
        # Only anonymous memory is surely zero where this process has no page.
        if vma.copied:
            there = population.copies(pagemap, [whole])
        else:
            there = population.populated(pagemap, [whole]) if vma.anonymous else [whole]
        found: list[Range] = []
        for start, end in there:
            for at in range(start, end, _CHUNK):
                found += self._changed_in(process, at, min(at + _CHUNK, end), memory)
        for start, end in without([whole], there):
            found += self._no_longer(
                process, start, end, self._zeros if vma.anonymous else _UNKNOWN
            )
        return found

    def _changed_in(self, process: _Process, start: int, end: int, memory: int) -> list[Range]:
        try:
            data = memoryview(os.pread(memory, end - start, start))
        except OSError:
            data = memoryview(b"")
        found = []
        for at in range(0, len(data) - PAGE + 1, PAGE):
            known = process.digest(start + at)
            if known == _UNKNOWN or known != self._digest(data[at : at + PAGE]):
                found.append((start + at, start + at + PAGE))
        if len(data) < end - start:
            found.append((start + len(data) // PAGE * PAGE, end))  # can't be read now
        return found

    def _no_longer(self, process: _Process, start: int, end: int, nothing: bytes) -> list[Range]:
        """Pages that the caller has, and the process no longer for itself; but those whose digest is NOTHING, which is
        what there is now."""
        found = []
        for chunk in self._known_chunks(process, start, end):
            begin, until = max(start, chunk * _CHUNK), min(end, (chunk + 1) * _CHUNK)
            for page in range(begin, until, PAGE):
                if process.digest(page) not in (_UNKNOWN, nothing):
                    found.append((page, page + PAGE))
        return found
