"""How much memory processes have, and what copying it page by page would make of it.

After fork(2) parent and child have the same pages until one of them writes. CRIU's restore puts that together again;
whoever copies each process's pages by themselves (a warm move) ends with a page for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckpt.ops.bringup import resources_of
from runtime.container.record import Container

LITTLE = 64 << 20
"""Bytes that may come to be there more than once without a word."""
PART = 4
"""Or one part in so many of everything."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes. total: everything once. forked: what is there once for several processes that forked."""

    total: int
    forked: int

    @property
    def much_forked(self) -> bool:
        return self.forked > max(LITTLE, self.total // PART)

    def why_not_apart(self, limit: int) -> str:
        """Why each process can't have pages of its own under a memory LIMIT (None or 0: none); "" if it can."""
        if limit and limit > 0 and self.total + self.forked > limit:
            return f"{self.told()}: more than its limit of {limit >> 20} MiB"
        return ""

    def told(self) -> str:
        return (
            f"{self.forked >> 20} MiB are shared between processes that forked, "
            "and would be there once for each"
        )


def why_not_apart(container: Container, use: MemoryUse, wish: str) -> str:
    """Why each process can't have pages of its own at the destination; whoever names a mode may have many."""
    if wish == "auto" and use.much_forked:
        return use.told()
    return use.why_not_apart(resources_of(container).memory.limit or 0)


def memory_use(pids: Iterable[int]) -> MemoryUse:
    """Of processes; those that have ended count for nothing. Takes the kernel 12 ms for each GiB (smaps_rollup)."""
    total = forked = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found = {name: int(rest.split()[0]) << 10 for name, rest in map(_field, lines[1:])}
        total += found.get("Pss", 0)
        forked += max(0, found.get("Anonymous", 0) - found.get("Pss_Anon", 0))
    return MemoryUse(total, forked)


def _field(line: str) -> tuple[str, str]:
    name, _, rest = line.partition(":")
    return name, rest
