"""Ctrl-C and its like: one clean unwinding, at a moment when there is something to undo.

SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread, so that every `with` gives back what it holds. Only
the first does: a second one would tear the unwinding itself apart and leave behind what it was about to remove (whoever
cannot wait has SIGQUIT and SIGKILL, and `ckpt recover`). Where two steps must not come apart, `shielded` lets a signal
wait until both are done. Who handles signals in a way of its own (a foreground `run` passes them on, `migrate` asks the
other host to stop) sets its own handlers for that time.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the command. No KeyboardInterrupt: libraries catch that to do things of their own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    shields = 0
    waiting = 0
    raised = False


def install() -> None:
    """In the main thread of a command. A signal that is ignored (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def _arrived(number: int, _: FrameType | None) -> None:
    if _State.raised:
        return
    if _State.shields:
        _State.waiting = _State.waiting or number
        return
    _State.raised = True
    raise Interrupted(number)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Signals that come meanwhile take effect at the end of the block, unless it fails by itself."""
    _State.shields += 1
    try:
        yield
    finally:
        _State.shields -= 1
    if not _State.shields and _State.waiting:
        number, _State.waiting, _State.raised = _State.waiting, 0, True
        raise Interrupted(number)
