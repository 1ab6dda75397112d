"""What CRIU itself took of a container, by kind: images by their names, private memory by the mapping it lies in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ckpt.ops.leftover import SYSTEM_V, TMPFS, kind_of
from images.pages import PRESENT, PageRun
from runtime.tracking.ranges import Range, common, merged, size, without
from runtime.tracking.vmas import Vma

MEMORY = "memory"
LATE = "private memory that no round had"
DESCRIPTIONS = "descriptions of processes, files and sockets"
_PAGES, _TMPFS = "pages-", "tmpfs-"


def private_by_kind(
    runs: Iterable[PageRun], vmas: Iterable[Vma], hidden: Sequence[Range], copies: Sequence[Range]
) -> dict[str, int]:
    """Bytes of a task's pages that CRIU wrote, from its page map.

    HIDDEN, COPIES: what it was not shown, of anonymous memory and of private mappings of files.
    """
    dumped = merged((run.address, run.end) for run in runs if run.flags & PRESENT)
    found: Counter[str] = Counter()
    for vma in vmas:
        here = common(dumped, [(vma.start, vma.end)])
        late = common(here, list(hidden))
        found[LATE] += size(late)
        found[kind_of(vma, list(copies))] += size(without(here, late))
    return {what: amount for what, amount in found.items() if amount}


def by_kind(images: Mapping[str, int], private: Mapping[str, int] | None) -> dict[str, int]:
    """Bytes of IMAGES, by name, as kinds. PRIVATE: see private_by_kind, of all tasks; None: nobody looked."""
    found: Counter[str] = Counter()
    for name, amount in images.items():
        if name.startswith(_PAGES):
            found[MEMORY] += amount
        else:
            found[TMPFS if name.startswith(_TMPFS) else DESCRIPTIONS] += amount
    if private is not None:
        found[SYSTEM_V] = max(0, found.pop(MEMORY, 0) - sum(private.values()))
        found.update(private)
    return {what: amount for what, amount in found.most_common() if amount}
