"""Page maps for a checkpoint whose pages come from two places: CRIU's images, and a copy made while it ran.

CRIU, behind the veil, wrote pages and entries only for what the copy does not carry. A checkpoint that anybody can
restore has all of them in one pages image, in rising order of address: this says in which order to take them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge

from images.errors import Corrupt
from images.lazy_entries import shared_of
from images.pages import LAZY, PAGE, PARENT, PRESENT, PageMap, PageRun


@dataclass(frozen=True, slots=True)
class Piece:
    """Pages that lie together. dumped: they are the next ones of CRIU's pages image; else they are the copy's.

    of_file: in a private mapping of a file.
    """

    start: int
    end: int
    flags: int
    dumped: bool
    of_file: bool = False


def pieces(
    page_map: PageMap,
    carried: Iterable[tuple[int, int]],
    name: str = "a page map",
    *,
    of_files: Iterable[tuple[int, int]] = (),
) -> Iterator[Piece]:
    """Where the pages of the whole come from, in the order of its pages image.

    carried: sorted ranges [start, end) that the copy has; of_files: the same, in private mappings of files. Raises
    Corrupt where both have a page, and for a page map of a dump that left pages elsewhere.
    """
    theirs = (_dumped(run, name) for run in page_map.runs)
    # As CRIU marks anonymous memory of tasks. Of what tasks share nothing is lazy.
    flags = PRESENT if shared_of(name) is not None else PRESENT | LAZY
    ours = (Piece(start, end, flags, False) for start, end in carried)
    files = (Piece(start, end, PRESENT, False, True) for start, end in of_files)
    last = 0
    for piece in merge(theirs, ours, files, key=lambda piece: piece.start):
        if piece.start < last:
            raise Corrupt(
                doing="completing",
                target=name,
                why=f"the page at {piece.start:#x} was hidden, and dumped nevertheless",
            )
        last = piece.end
        yield piece


def runs(found: Iterable[Piece]) -> Iterator[PageRun]:
    """The entries of the whole's page map: pieces that touch and are of a kind are one."""
    start = end = flags = 0
    for piece in found:
        if (piece.start, piece.flags) != (end, flags):
            if end > start:
                yield PageRun(start, (end - start) // PAGE, flags)
            start, flags = piece.start, piece.flags
        end = piece.end
    if end > start:
        yield PageRun(start, (end - start) // PAGE, flags)


def _dumped(run: PageRun, name: str) -> Piece:
    if run.flags & PARENT or not run.flags & PRESENT:
        raise Corrupt(
            doing="completing",
            target=name,
            why=f"the pages at {run.address:#x} are elsewhere (flags {run.flags})",
        )
    return Piece(run.address, run.end, run.flags, True)
