"""What processes share is given to CRIU when all of it is here, and nothing runs if CRIU didn't take it."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpt.ops.landing import Landing
from runtime.errors import SystemFault
from runtime.pager.client import Pager
from runtime.pagesource import receive
from runtime.pagesource.send import PageSender
from runtime.pagesource.wire import SHARED_FROM, Shared
from tests import needs

pytestmark = needs.root
IMAGE = "pagemap-shmem-77.img"


def going() -> None:
    """Nothing speaks against it."""


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    """With one shared object without pages; 77 at the source."""
    read, write = os.pipe()
    landing = Landing(read, limit=1 << 20)
    landing.pager = Pager(str(tmp_path))
    with PageSender(write) as sender:
        sender.shared(SHARED_FROM, Shared(77, False, b"x"))
        sender.mark()
    landing.wait_marks(1, going)
    yield landing
    os.close(write)
    landing.close()
    os.close(read)


def test_pages_may_begin_hours_after_their_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and files travel first, on a lane of their own."""
    hours, asked = itertools.count(step=3600.0), threading.Semaphore(0)

    def clock() -> float:
        asked.release()
        return next(hours)

    monkeypatch.setattr(receive, "time", SimpleNamespace(monotonic=clock))
    read, write = os.pipe()
    landing = Landing(read, limit=1 << 20)
    for _ in range(2):  # when it began to wait, and after it had waited a little
        assert asked.acquire(timeout=30)
    with PageSender(write) as sender:
        sender.mark()
    landing.wait_marks(1, going)
    os.close(write)
    landing.close()
    os.close(read)


def test_it_is_given_when_all_pages_are_here(landing: Landing) -> None:
    given: list[int | None] = []
    asking = threading.Thread(target=lambda: given.append(landing.along(IMAGE, 0, going)))
    asking.start()
    assert landing.along("core-1.img", 0, going) is None
    assert not given
    landing.hand_over()
    asking.join()
    assert given == [landing.store[SHARED_FROM].fd]
    assert landing.along("pagemap-shmem-78.img", 0, going) is None


def test_who_waits_for_it_hears_of_the_end(landing: Landing) -> None:
    def check() -> None:
        raise SystemFault(doing="restoring", target="it", why="it was given up")

    with pytest.raises(SystemFault, match="given up"):
        landing.along(IMAGE, 0, check)


def test_nothing_runs_if_the_restored_tasks_have_something_else(landing: Landing) -> None:
    landing.hand_over()
    task = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(SystemFault, match="did not take"):
            landing.check_restored(lambda: [task.pid])
    finally:
        task.kill()
        task.wait()
