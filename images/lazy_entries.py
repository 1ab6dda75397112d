"""Page maps for pages that do not travel in CRIU's images.

A warm move carries most pages beside the images, and CRIU, behind the veil, writes no entries for them. Its restore
needs one: only pages with a LAZY entry are left to the pager. So each carried range gets one on the way to the restore;
a lazy entry may span memory that was never populated (faults there are answered with zeros).

Three kinds of entries come from a `dump --lazy-pages`:

- PRESENT, without LAZY: pages that CRIU insists on, with their bytes in the pages image. They stay, also inside a
  carried range, whose lazy entry then goes around them.
- LAZY, without PRESENT: pages that CRIU left in the frozen tasks for its page server: those it saw, because nobody hid
  them (most of a stack, mappings that appeared too late to be tracked). Nobody will ever ask the page server: they must
  be fetched from the task before it is let go. They stay, and are reported.
- PARENT: cannot be; there is no parent in a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from images.errors import BadInput, Corrupt
from images.pages import (
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    PageMap,
    PageRun,
    build_page_map,
    parse_page_map,
)
from images.rewrite import Rewrite

Range = tuple[int, int]
"""[start, end): addresses, both multiples of PAGE."""

_NAME = re.compile(r"pagemap-(\d+)\.img")
_SHARED = re.compile(r"pagemap-shmem-(\d+)\.img")


@dataclass(frozen=True, slots=True)
class LazyPlan:
    """page_map: for the restore. fetch: ranges whose pages only the frozen task has, in order."""

    page_map: PageMap
    fetch: tuple[Range, ...]

    @property
    def fetch_bytes(self) -> int:
        return sum(end - start for start, end in self.fetch)


def task_of(name: str) -> int | None:
    """The process id (as the container sees it) whose page map the image NAME is; None for any other image."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def shared_of(name: str) -> int | None:
    """The inode (its lower 32 bits) of the shared memory whose page map the image NAME is; None for any other image."""
    found = _SHARED.fullmatch(name)
    return int(found[1]) if found else None


def plan_lazy(page_map: PageMap, carried: Iterable[Range], name: str = "a page map") -> LazyPlan:
    """PAGE_MAP with lazy entries for the CARRIED ranges, and what is left to be fetched.

    carried: the ranges that were hidden from CRIU, each being held by the destination as a whole (what isn't there is
    zeros). Raises BadInput for ranges that aren't, Corrupt for a page map that no lazy dump writes.
    """
    wanted = _joined(carried)
    present: list[PageRun] = []
    seen: list[Range] = []
    for run in page_map.runs:
        if run.flags & PARENT or not run.flags & (LAZY | PRESENT):
            raise Corrupt(
                doing="reading",
                target=name,
                why=f"an entry with flags {run.flags} at {run.address:#x}",
            )
        if run.flags & PRESENT:
            if run.flags & LAZY:
                # A restore with lazy pages would skip its bytes and ask the pager, which has no such page.
                raise Corrupt(
                    doing="reading",
                    target=name,
                    why="pages that could be lazy were dumped",
                    hint="the dump was not made with --lazy-pages",
                )
            present.append(run)
        else:
            seen.append((run.address, run.end))
    taken = [(run.address, run.end) for run in present]
    fetch = tuple(_minus(_joined(seen), wanted))
    lazy = _minus(_joined([*wanted, *fetch]), taken)
    runs = present + [PageRun(start, (end - start) // PAGE, LAZY) for start, end in lazy]
    runs.sort(key=lambda run: run.address)
    return LazyPlan(PageMap(page_map.pages_id, tuple(runs)), fetch)


def rewrite_lazy(name: str, carried: Sequence[Range]) -> Rewrite:
    """For rewrite.Rewriter: the image NAME with lazy entries for CARRIED. Raises as plan_lazy does."""

    def rewrite(data: bytes) -> bytes:
        plan = plan_lazy(parse_page_map(data, name), carried, name)
        return build_page_map(plan.page_map.pages_id, plan.page_map.runs)

    return rewrite


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, those that touch or overlap made one."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if start % PAGE or end % PAGE or start >= end or start < 0:
            raise BadInput(
                doing="adding lazy pages at",
                target=f"{start:#x}-{end:#x}",
                why="not a range of pages",
            )
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _minus(ranges: Sequence[Range], holes: Sequence[Range]) -> list[Range]:
    """What of RANGES lies outside HOLES; both sorted and disjoint."""
    out: list[Range] = []
    first = 0
    for start, end in ranges:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        at, index = start, first
        while index < len(holes) and holes[index][0] < end:
            if holes[index][0] > at:
                out.append((at, holes[index][0]))
            at = max(at, holes[index][1])
            index += 1
        if at < end:
            out.append((at, end))
    return out
