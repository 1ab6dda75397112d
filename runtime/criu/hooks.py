"""CRIU's hooks as a conversation: at a hook CRIU waits for our word.

This makes both of CRIU's verbs two-phase: a dump waits in `post-dump` with everything dumped and the tasks frozen, and
kills or resumes them as told; a restore waits in `post-restore` with everything restored and no instruction run.
See hook.c for what happens when we die.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.freestanding import program

SOURCE = Path(__file__).with_name("hook.c")


def script(programs: Path) -> list[str]:
    """CRIU's options for the hooks. PROGRAMS: where what we compile lies."""
    return ["--action-script", str(program(SOURCE, programs))]


@dataclass(frozen=True, slots=True)
class Asked:
    """A hook that waits for its verdict."""

    action: str
    init_pid: int
    at_ns: int
    """CLOCK_REALTIME when we heard of it."""


class Hooks:
    """The two pipes. Close it, or use it as a context manager."""

    def __init__(self, actions: tuple[str, ...]) -> None:
        self._ask_r, self._ask_w = os.pipe2(os.O_CLOEXEC)
        self._answer_r, self._answer_w = os.pipe2(os.O_CLOEXEC)
        self.actions = actions
        self._pending = b""

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CKPT_HOOKS": " ".join(self.actions),
            "CKPT_PID": str(os.getpid()),
            "CKPT_ASK": str(self._ask_w),
            "CKPT_ANSWER": str(self._answer_r),
        }

    def fileno(self) -> int:
        """Readable when a hook asks."""
        return self._ask_r

    def next(self, timeout: float) -> Asked | None:
        """The hook that waits; None if none does within TIMEOUT seconds."""
        if b"\n" not in self._pending:
            if not select.select([self._ask_r], [], [], timeout)[0]:
                return None
            self._pending += os.read(self._ask_r, 4096)
        now = time.time_ns()
        line, _, self._pending = self._pending.partition(b"\n")
        action, pid = line.split()
        return Asked(action.decode(), int(pid), now)

    def answer(self, status: int) -> None:
        """Let the hook that asked go on (0) or fail."""
        os.write(self._answer_w, b"%d\n" % status)

    def close(self) -> None:
        for fd in (self._ask_r, self._ask_w, self._answer_r, self._answer_w):
            if fd >= 0:
                os.close(fd)
        self._ask_r = self._ask_w = self._answer_r = self._answer_w = -1
