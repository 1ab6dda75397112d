"""Written pages found by userfaultfd's asynchronous write protection and PAGEMAP_SCAN (Linux 6.7).

A userfaultfd is opened inside the process (injection.py). Through it, from outside, mappings are registered. The
first write to a write-protected page takes the protection away, without anybody being woken; PAGEMAP_SCAN tells which
pages have lost theirs and protects them again, in one step under the page table's lock. So no write is lost between
asking and watching anew, and nothing has to be stopped.

What the kernel answers for, and what we do about the rest:

mapping gone, another at its place
    The new one isn't registered, and the scan, asked for it (CHECK_WPASYNC), fails with EPERM: all of it is dirty, and
    it is registered.
mapping grown, moved, split, merged
    A mapping that isn't wholly one that we registered: the parts that aren't are dirty.
pages given back (MADV_DONTNEED)
    They look like never written. So the empty ranges of each round are compared with those of the last: what is empty
    and wasn't is dirty. (Asking for what is empty is several times faster than asking for what isn't.)
exec
    New memory, nothing of it registered: as above; registering fails with ENOMEM (or goes to the old memory, where a
    vfork child still uses that), so a new userfaultfd is opened.
fork
    The child has no userfaultfd: another process, wholly dirty at first.
files, mapped privately
    What is written there becomes a page of the process's own, which is protected and found like any other. A copy that
    is given back leaves a mark where it was, which looks like a page that is swapped out and was not written: so what
    is swapped out of these mappings is dirty each time (the next look finds it in memory).
shared memory, files that are mapped shared
    Protection belongs to one process's view of a page. Others may write to it, processes that come and go between two
    rounds too, and write(2) passes page tables by. Always dirty; compare.py can tell more.
a process that refuses injection
    All of it is dirty each time, and each time it is tried again where that can help.
a mapping that somebody else tracks
    Registering fails with EBUSY: always dirty.

New mappings are protected by UFFDIO_WRITEPROTECT over what is populated, not by a scan: before Linux 6.13 a page that
mremap(2) moved may come with a mark from its former life, and look protected without being so.

When the tracker ends, also by being killed, its userfaultfds close, and the kernel takes protection and registration
away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.errors import NotFound, RuntimeFault, Unsupported
from runtime.syscalls import MACHINE
from runtime.tracking import pagemap, uffd
from runtime.tracking.guard import Guard
from runtime.tracking.pagemap import Scanner
from runtime.tracking.population import opened
from runtime.tracking.ranges import Range, common, merged, without
from runtime.tracking.tracker import Select
from runtime.tracking.vmas import Vma, anonymous, mappings
from runtime.tracking.watching import Watched, Watching

log = logging.getLogger(__name__)

_POPULATED = pagemap.IS_PRESENT | pagemap.IS_SWAPPED
_FEATURES = uffd.FEATURE_WP_ASYNC | uffd.FEATURE_WP_UNPOPULATED


def supported() -> bool:
    """Whether this host can do it at all."""
    return MACHINE == "x86_64" and uffd.supports_async() and pagemap.supports_scan()


class _Unregistered(Exception):
    """The scan met memory that isn't registered."""


class _OtherMemory(Exception):
    """The userfaultfd stands for memory that the process has left."""


@dataclass(slots=True)
class _Process(Watched):
    uffd: int = -1
    refused: bool = False
    """For good: asking again is of no use."""
    registered: list[Range] = field(default_factory=list)
    empty: list[Range] = field(default_factory=list)

    def forget_memory(self) -> None:
        """Its memory isn't what it was: nothing is registered, nothing known."""
        if self.uffd >= 0:
            os.close(self.uffd)
            self.uffd = -1
        self.registered = []
        self.empty = []

    def close(self) -> None:
        self.forget_memory()
        Watched.close(self)  # super() doesn't know a class with slots


class WpAsync(Watching[_Process]):
    """A `Tracker`."""

    name = "wp-async"
    compares = False

    def __init__(self, select: Select = anonymous) -> None:
        """SELECT: the mappings that the caller wants to hear of. Raises Unsupported."""
        if not supported():
            raise Unsupported(
                doing="tracking written memory with",
                target="userfaultfd",
                why="this host has no WP_ASYNC and PAGEMAP_SCAN on x86-64",
                hint="Linux 6.7 or newer",
            )
        super().__init__(_Process, select)
        self._guard = Guard()
        self.stopped_ns: dict[int, int] = {}
        """For how long each process's main thread was stopped to begin with."""

    def start(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(NotFound):
                self._attach(self._process(pid))

    def stop(self) -> None:
        super().stop()
        self._guard.close()

    def dirty(self, pid: int, *, frozen: bool = False) -> list[Range]:
        try:
            process = self._process(pid)
            try:
                return self._dirty(process, frozen)
            except _OtherMemory:
                process.forget_memory()
            try:
                return self._dirty(process, frozen)
            except _OtherMemory:
                process.forget_memory()
            return merged((vma.start, vma.end) for vma in process.vmas)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise self._gone(pid) from error

    def _attach(self, process: _Process) -> bool:
        """Open its userfaultfd; whether there is one now."""
        if process.uffd >= 0 or process.refused:
            return process.uffd >= 0
        pid = process.identity.pid
        try:
            fd = self._guard.open(pid)
        except NotFound as fault:
            raise self._gone(pid) from fault
        except RuntimeFault as fault:
            log.info("process %d can't be tracked: %s", pid, fault.why)
            process.why_not, process.refused = fault.why, not fault.retry
            return False
        self.stopped_ns[pid] = self._guard.stopped_ns
        try:
            uffd.enable(fd, _FEATURES)
        except OSError as error:
            os.close(fd)
            process.why_not = f"userfaultfd: {error.strerror}"
            return False
        process.uffd, process.why_not = fd, ""
        return True

    def _dirty(self, process: _Process, frozen: bool) -> list[Range]:
        pid = process.identity.pid
        # Injecting would wait for a frozen process, and hold it while the dump wants to.
        attached = process.uffd >= 0 if frozen else self._attach(process)
        vmas = [vma for vma in mappings(pid) if self._select(vma)]
        with opened(pid) as fd:
            # After both are open: they belong to the process that we mean.
            process.identity.check()
            process.vmas = vmas
            if not attached:
                return merged((vma.start, vma.end) for vma in vmas)
            return self._scan(process, vmas, Scanner(fd))

    def _scan(self, process: _Process, vmas: list[Vma], scanner: Scanner) -> list[Range]:
        found: list[Range] = []
        tracked = merged((vma.start, vma.end) for vma in vmas if _trackable(vma))
        registered = common(process.registered, tracked)
        empty: list[Range] = []
        for vma in vmas:
            whole = (vma.start, vma.end)
            if not _trackable(vma):
                found.append(whole)
                continue
            new = without([whole], registered)
            if new != [whole]:
                try:
                    found += _written(scanner, vma)
                except _Unregistered:
                    registered = without(registered, [whole])
                    new = [whole]
            found += new
            # Only the new parts are protected here: protecting what the scan has seen would hide later writes to it.
            for part in new:
                if _register(process.uffd, scanner, vma, part):
                    registered = merged([*registered, part])
            if vma.copied:
                empty += without([whole], _populated(scanner, vma, whole))
            else:
                empty += scanner.scan(*whole, all_of=_POPULATED, inverted=_POPULATED)
        empty = merged(empty)
        # Given back: empty now, and not before.
        found += without(empty, process.empty)
        process.registered, process.empty = registered, empty
        if tracked and not registered:
            # An exec whose old memory a vfork child still uses: registering went there. Next time, a new descriptor.
            process.forget_memory()
        return merged(found)


def _trackable(vma: Vma) -> bool:
    return vma.anonymous or vma.copied


def _register(fd: int, scanner: Scanner, vma: Vma, part: Range) -> bool:
    """Register memory of VMA and protect what is in it; whether it worked. Raises _OtherMemory."""
    try:
        uffd.register(fd, *part)
        for piece in _populated(scanner, vma, part):
            uffd.protect(fd, *piece)
    except OSError as error:
        # userfaultfd_register says ENOMEM when there is no such memory any more, other calls ESRCH.
        if error.errno in (errno.ESRCH, errno.ENOMEM):
            raise _OtherMemory from None
        # EBUSY: somebody else's. ENOENT, EINVAL, EAGAIN: changed meanwhile. It stays dirty, and is tried again.
        return False
    try:
        # Whether it is this memory that was registered: the scan looks at the present one.
        _probe(scanner, part)
    except _Unregistered:
        return False
    return True


def _written(scanner: Scanner, vma: Vma) -> list[Range]:
    """Written since the last time, and protected again. Raises _Unregistered."""
    try:
        # Only what is populated: asked for the written alone, the kernel counts empty pages in, and makes page tables
        # for all of a reservation to mark them.
        whole = (vma.start, vma.end)
        if not vma.copied:
            return scanner.scan(*whole, all_of=pagemap.IS_WRITTEN, any_of=_POPULATED, rearm=True)
        own = pagemap.IS_WRITTEN | pagemap.IS_FILE
        return [
            *scanner.scan(
                *whole, all_of=own, any_of=_POPULATED, inverted=pagemap.IS_FILE, rearm=True
            ),
            *scanner.scan(*whole, all_of=pagemap.IS_SWAPPED),
        ]
    except PermissionError:
        raise _Unregistered from None


def _probe(scanner: Scanner, whole: Range) -> None:
    """Raises _Unregistered; changes nothing (no page is in two states at once)."""
    try:
        scanner.scan(
            *whole,
            all_of=pagemap.IS_PRESENT | pagemap.IS_SWAPPED,
            rearm=True,
        )
    except PermissionError:
        raise _Unregistered from None


def _populated(scanner: Scanner, vma: Vma, part: Range) -> list[Range]:
    """What the process has for itself: of a file, its copies."""
    files = pagemap.IS_FILE if vma.copied else 0
    return scanner.scan(*part, all_of=files, any_of=_POPULATED, inverted=files)
