"""A task's filling places every page that is here, in whatever order others come."""

from __future__ import annotations

import pytest

from runtime.pagecache.store import TaskPages
from runtime.pager import task as module
from runtime.pager.task import Task

PAGE = 4096
NEXT, FAR = 0x10000, 0x100000


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def copy(fd: int, target: int, source: int, length: int) -> tuple[int, int]:
        found.append((target, target + length))
        return length, 0

    monkeypatch.setattr(module.uffd, "copy", copy)
    return found


def test_what_was_here_before_is_placed_although_pages_come_elsewhere_all_the_while(
    placed: list[tuple[int, int]],
) -> None:
    pages = TaskPages()
    try:
        pages.owe(NEXT, NEXT + 16 * PAGE)
        for view in pages.views(FAR, FAR + 4 * PAGE):
            view[:] = b"x" * len(view)
            view.release()
        task = Task(1, -1)
        task.begin(pages)
        for number in range(8):
            task.fill()  # passes over what is still to come
            page = (NEXT + number * PAGE, NEXT + (number + 1) * PAGE)
            pages.arrived(*page)
            task.come([page])
            task.fill()  # places that page, and goes on from there
        for _ in range(4):
            task.fill()
        assert (FAR, FAR + 4 * PAGE) in placed
        assert task.starved and task.pending.size == 8 * PAGE
    finally:
        pages.close()
