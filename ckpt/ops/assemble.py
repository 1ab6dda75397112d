"""A checkpoint made whole: what CRIU wrote in the frozen window, and the pages that were copied while it ran.

The tasks run again. Each task's pages image is written from its two sources in the order of addresses, with a page map
that says so; everything else goes on as CRIU wrote it. What results is a checkpoint like any other: neither restore
nor verify, export or another host can tell how it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from ckpt.ops.aside import Aside
from ckpt.ops.outgoing import Target, put_held, put_part
from images import whole_entries
from images.errors import Truncated
from images.lazy_entries import shared_of, task_of
from images.moving import Mover
from images.pages import PageMap, build_page_map, parse_page_map
from images.parts import CRIU
from images.pour import Extent, pour_extents
from images.whole_entries import Piece
from runtime.pagesource.keep import PageKeeper
from runtime.pagesource.wire import COPIES_FROM
from runtime.tracking.ranges import Range, common


def complete(
    target: Target,
    aside: Aside,
    held: Mapping[str, bytes],
    keeper: PageKeeper,
    hidden: Callable[[int], Sequence[Range]],
    *,
    of_files: Callable[[int], Sequence[Range]] = lambda task: (),
    shared: Mapping[int, int] = MappingProxyType({}),
) -> int:
    """Write everything into TARGET; returns the bytes of pages that came from KEEPER.

    HELD: the small images that were kept back, page maps among them. HIDDEN: of a task (as the container numbers it),
    the ranges that CRIU was not shown; OF_FILES: pages in private mappings of files that KEEPER has and CRIU was not
    shown; SHARED: what tasks share, likewise: its number in KEEPER, by inode. KEEPER is empty afterwards.
    """
    numbers = {name: task_of(name) or shared.get(shared_of(name) or 0, 0) for name in held}
    page_maps = {
        name: parse_page_map(held[name], name) for name, number in numbers.items() if number
    }
    ours = {page_map.pages_file for page_map in page_maps.values()}
    aside.pour(target, lambda kind, name: kind != CRIU or name not in ours)
    total = 0
    for name, page_map in page_maps.items():
        number = numbers[name]
        carried, copies = keeper.runs(number), list[Range]()
        if task_of(name) is not None:
            carried = common(carried, list(hidden(number)))
            copies = common(keeper.runs(COPIES_FROM + number), list(of_files(number)))
        dumped = aside.extents(CRIU, page_map.pages_file) if page_map.runs else []
        total += _task(target, number, name, page_map, carried, copies, dumped, keeper)
        keeper.ended(number)
        if task_of(name) is not None:
            keeper.ended(COPIES_FROM + number)
    put_held(target, {name: data for name, data in held.items() if name not in page_maps})
    return total


def _task(
    target: Target,
    task: int,
    name: str,
    page_map: PageMap,
    carried: Sequence[Range],
    copies: Sequence[Range],
    dumped: Sequence[Extent],
    keeper: PageKeeper,
) -> int:
    def pieces() -> Iterator[Piece]:
        return whole_entries.pieces(page_map, carried, name, of_files=copies)

    with Mover(doing="completing", target=page_map.pages_file) as mover:
        extents = _extents(pieces(), _Cursor(dumped, page_map.pages_file), task, keeper)
        size = pour_extents(target.sink(CRIU), page_map.pages_file, extents, mover)
    whole = build_page_map(page_map.pages_id, whole_entries.runs(pieces()))
    put_part(target, CRIU, name, whole)
    return size - sum(size for _, _, size in dumped)


def _extents(
    pieces: Iterator[Piece], dumped: _Cursor, task: int, keeper: PageKeeper
) -> Iterator[Extent]:
    for piece in pieces:
        if piece.dumped:
            yield from dumped.next(piece.end - piece.start)
        else:
            number = COPIES_FROM + task if piece.of_file else task
            for offset, size in keeper.file.taking(number, piece.start, piece.end):
                yield keeper.file.fd, offset, size
    dumped.end()


class _Cursor:
    """CRIU's pages image from its first byte to its last."""

    def __init__(self, extents: Sequence[Extent], name: str) -> None:
        self._left = list(reversed(extents))
        self._name = name

    def next(self, size: int) -> Iterator[Extent]:
        while size:
            if not self._left:
                raise self._differs("ends too early")
            fd, offset, there = self._left.pop()
            if there > size:
                self._left.append((fd, offset + size, there - size))
                there = size
            size -= there
            yield fd, offset, there

    def end(self) -> None:
        if self._left:
            raise self._differs("has more pages")

    def _differs(self, what: str) -> Truncated:
        return Truncated(
            doing="completing", target=self._name, why=f"it {what} than its page map says"
        )
