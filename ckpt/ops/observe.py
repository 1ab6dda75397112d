"""A few seconds of looking at a running container: what it holds, how fast it writes, how well its memory packs.

Its processes are tracked as a warm migration would (runtime/tracking), in short intervals and then in longer ones, and
let go exactly as they were found. Nothing is stopped but, with WP_ASYNC, each main thread once for a fraction of a
millisecond. What is read of the memory is a sample to be compressed, and never leaves this process.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from ckpt.ops import volumes
from ckpt.ops.carry import NOTEWORTHY, has_memory
from ckpt.ops.host import Host
from ckpt.ops.leftover import Content, look
from ckpt.ops.observe_shared import SharedWriting
from ckpt.ops.whole import wait_whole
from ckpt.ops.writing import Curve, Interval, curve, size_of
from runtime import launch
from runtime.container.record import Container
from runtime.errors import NotFound, RuntimeFault
from runtime.pagesource.read import PAGE, Buffer, TaskReader, batches
from runtime.pagesource.send import LEVEL
from runtime.tracking import choose, population
from runtime.tracking.ranges import Range, size
from runtime.tracking.tracker import Tracker, tell_taken
from runtime.tree import diff, snapshot
from runtime.veil.carry import is_candidate_or_copied

SECONDS = 3.0
SHORT, SHORTS = 0.02, 8
LONG = 0.1
"""Seconds of an interval. A round of a small container takes some 20 ms, and a program's hot pages are all written
within less: without short intervals a curve would begin too flat. A look costs 2 to 10 ms per GiB."""
ENOUGH = 400_000
"""Ranges: a program that writes so much all over its memory needs no longer look, and each costs 100 bytes here."""
SAMPLE = 8 << 20
_PIECE = 1 << 16
_ZEROS = bytes(PAGE)

Check = Callable[[float], None]
"""Called with the share that is over (0 to 1); may raise to end it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """zeros: share of the pages that are; ratio: plain by compressed size of the others; speed: bytes per second that
    the compressor takes in."""

    zeros: float = 0.0
    ratio: float = 1.0
    speed: float = 1e9


@dataclass(frozen=True, slots=True)
class Observed:
    """content: of the memory; writing: bytes of carried memory by time; scan_s: a walk over its files; files_rate:
    bytes per second that change in them; shared_rate: the same, of memory that processes share; untracked: why the
    memory of processes counts as written all the time."""

    seconds: float
    tracker: str
    content: Content
    writing: Curve
    sample: Sample = Sample()
    scan_s: float = 0.0
    files_rate: float = 0.0
    untracked: tuple[str, ...] = ()
    shared_rate: float = 0.0


def observe(
    host: Host, container: Container, seconds: float = SECONDS, check: Check = lambda share: None
) -> Observed:
    """Look for SECONDS. Raises RuntimeFault when it can't be looked at."""
    wait_whole(container, lambda: check(0.0))
    cgroup = host.cgroup(container)
    trees = [str(container.paths.upper)]
    trees += [one.directory(container) for one in launch.tmpfs_of(container)]
    trees += [volume.source for volume in volumes.named(host.paths, container.record.spec)]
    external = [point for point, _ in launch.external_points(container)]
    content = look(cgroup.pids(), external)
    before = list(map(snapshot, trees))
    with SharedWriting(cgroup.pids, host.paths.programs) as shared:
        tracker = choose.best(is_candidate_or_copied)
        try:
            watch = _Watch(tracker, lambda: [pid for pid in cgroup.pids() if has_memory(pid)])
            began = time.monotonic()
            watch.look()
            sample = watch.sample()
            shorts = watch.intervals(SHORT, SHORTS, lambda n: check(0.0))
            shared_rate = shared.rate()
            left = max(1, round((seconds - (time.monotonic() - began)) / LONG))
            longs = watch.intervals(LONG, left, lambda n: check(n / left))
            untracked = watch.untracked()
        finally:
            tracker.stop()
    walk = time.monotonic()
    after = list(map(snapshot, trees))
    now = time.monotonic()
    return Observed(
        seconds=now - began,
        tracker=tracker.name,
        content=content,
        writing=curve(shorts, longs),
        sample=sample,
        scan_s=now - walk,
        files_rate=sum(diff(*both).data_bytes for both in zip(before, after, strict=True))
        / (now - began),
        untracked=untracked,
        shared_rate=shared_rate,
    )


class _Watch:
    def __init__(self, tracker: Tracker, pids: Callable[[], list[int]]) -> None:
        self._tracker = tracker
        self._pids = pids
        self._buffer = Buffer(1 << 20)
        self._last = time.monotonic()
        self._first: dict[int, list[Range]] = {}
        tracker.start(pids())

    def intervals(self, length: float, count: int, check: Callable[[int], None]) -> list[Interval]:
        """COUNT of them, each at least LENGTH seconds; fewer if that is enough to know."""
        found: list[Interval] = []
        ranges = 0
        for number in range(count):
            check(number)
            time.sleep(max(0.0, self._last + length - time.monotonic()))
            found.append(self.look())
            ranges += sum(map(len, found[-1].written.values()))
            if ranges > ENOUGH:
                break
        return found

    def look(self) -> Interval:
        """What was written since the last look; everything the first time."""
        found: dict[int, list[Range]] = {}
        for pid in self._pids():
            with contextlib.suppress(NotFound, FileNotFoundError, ProcessLookupError):
                dirty = self._tracker.dirty(pid)
                with population.opened(pid) as pagemap:
                    found[pid] = population.held(pagemap, dirty, self._tracker.vmas(pid))
                if self._tracker.compares:
                    self._take(pid, found[pid])
        now = time.monotonic()
        interval = Interval(now - self._last, found)
        self._last = now
        self._first = self._first or found
        return interval

    def _take(self, pid: int, ranges: list[Range]) -> None:
        """A tracker that compares has to be told what there was."""
        with TaskReader(pid) as reader:
            for batch in batches(ranges, self._buffer.size):
                read, _ = reader.read(batch, self._buffer)
                tell_taken(self._tracker, pid, read, self._buffer.view)

    def untracked(self) -> tuple[str, ...]:
        """Those whose memory is large enough to matter: not every container's own init."""
        reasons = {
            pid: self._tracker.why_all(pid)
            for pid, ranges in self._first.items()
            if size(ranges) > NOTEWORTHY
        }
        return tuple(f"process {pid}: {why}" for pid, why in reasons.items() if why)

    def sample(self) -> Sample:
        """How well a few MiB from all over the memory pack. Deterministic, so that two looks agree."""
        pieces = [
            (pid, at, min(at + _PIECE, end))
            for pid, ranges in self._first.items()
            for start, end in ranges
            for at in range(start, end, _PIECE)
        ]
        chosen = pieces
        if size_of(self._first) > SAMPLE:
            chosen = random.Random(4).sample(pieces, min(len(pieces), SAMPLE // _PIECE))
        pages = zeros = plain = packed = 0
        took = 0.0
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        for pid, start, end in chosen:
            with contextlib.suppress(RuntimeFault), TaskReader(pid) as reader:
                read, _ = reader.read([(start, end)], self._buffer)
                data = bytes(self._buffer.view[: size(read)])
                every = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
                full = [page for page in every if page != _ZEROS]
                pages += len(every)
                zeros += len(every) - len(full)
                if full:
                    joined = b"".join(full)
                    began = time.perf_counter()
                    packed += len(compressor.compress(joined))
                    took += time.perf_counter() - began
                    plain += len(joined)
        if not plain:
            return Sample(zeros=1.0 if pages else 0.0)
        return Sample(zeros / pages, max(1.0, plain / packed), plain / max(took, 1e-6))
