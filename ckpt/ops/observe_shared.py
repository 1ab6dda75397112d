"""How fast the processes of a container write to what they share: two looks at all of it (see runtime/shared)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from ckpt.ops.carry_shared import MOST
from runtime.errors import NotFound
from runtime.pagesource.read import Buffer, batches
from runtime.shared.find import largest, objects
from runtime.shared.follow import Followed
from runtime.tracking.ranges import size


class SharedWriting:
    """Use as a context manager: what is there is read when it begins."""

    def __init__(self, pids: Callable[[], list[int]], programs: Path) -> None:
        """PROGRAMS: where what we compile lies."""
        self._stack = contextlib.ExitStack()
        self._followed: list[Followed] = []
        buffer = Buffer(1 << 20)
        for one in largest(objects(pids()).values(), MOST):
            with contextlib.suppress(NotFound):
                followed = self._stack.enter_context(Followed(one, programs))
                self._followed.append(followed)
                for batch in batches(followed.changed()[0], buffer.size):
                    followed.read(batch, buffer)
        self._began = time.monotonic()

    def __enter__(self) -> SharedWriting:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rate(self) -> float:
        """Bytes per second that became different since it began: at least so many were written."""
        seconds = time.monotonic() - self._began
        return sum(size(one.changed()[0]) for one in self._followed) / seconds
