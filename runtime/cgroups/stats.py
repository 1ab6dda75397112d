"""What a container used, in one shape for every layout. None: this layout doesn't count it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes; `limit` and `swap_limit` None: unlimited. `swap` is swap alone."""

    usage: int | None = None
    limit: int | None = None
    peak: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    anon: int | None = None
    file: int | None = None
    inactive_file: int | None = None
    oom: int | None = None
    oom_kill: int | None = None

    @property
    def working_set(self) -> int | None:
        """What can't simply be dropped: usage without the inactive page cache."""
        if self.usage is None:
            return None
        return max(0, self.usage - (self.inactive_file or 0))


@dataclass(frozen=True, slots=True)
class CpuStats:
    """Microseconds, and counts of quota periods."""

    usage_us: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_us: int | None = None
    bursts: int | None = None
    burst_us: int | None = None


@dataclass(frozen=True, slots=True)
class PidsStats:
    """Tasks (threads count)."""

    current: int | None = None
    limit: int | None = None
    peak: int | None = None


@dataclass(frozen=True, slots=True)
class IoStats:
    """One block device; bytes and operations."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    read_ops: int = 0
    write_ops: int = 0


@dataclass(frozen=True, slots=True)
class PressureLine:
    """Shares of time in percent over 10, 60, 300 s, and the total in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@dataclass(frozen=True, slots=True)
class Stats:
    """All counters of one cgroup at one moment. `pressure`: resource -> "some"/"full" -> line."""

    memory: MemoryStats = field(default_factory=MemoryStats)
    cpu: CpuStats = field(default_factory=CpuStats)
    pids: PidsStats = field(default_factory=PidsStats)
    io: tuple[IoStats, ...] = ()
    pressure: dict[str, dict[str, PressureLine]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def parse_pressure(text: str) -> dict[str, PressureLine]:
    """A pressure file (Documentation/accounting/psi.rst)."""
    lines: dict[str, PressureLine] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        lines[kind] = PressureLine(
            float(values.get("avg10", 0)),
            float(values.get("avg60", 0)),
            float(values.get("avg300", 0)),
            int(values.get("total", 0)),
        )
    return lines
