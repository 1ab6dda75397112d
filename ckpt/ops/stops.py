"""Places at which a test may stop a migration or a dump: the one door, closed unless CKPT_TEST_STOP_AT is set.

    CKPT_TEST_STOP_AT=POINT:kill=PATH    the process kills itself there
    CKPT_TEST_STOP_AT=POINT:fail=PATH    the step fails there
    CKPT_TEST_STOP_AT=POINT:wait=PATH    waits there until PATH.go exists

Each makes PATH.reached first; where that exists already, nothing happens, so that who goes on with the work passes.
Several, separated by commas, may be given. Points: `journal-STATE` when that record is on disk; an action's name
(`freeze`, `prepare`, ...) when it begins, and `ACTION-done` at its end; `dump` while the tasks are frozen and images
come; `begun` when the destination has a place for the container; `heal` when a migration is taken over. Of a dump that
leaves its container running: `round` after each round over the memory, `dump`, `complete` when it runs again, `publish`
when everything is written.

Of CRIU: CKPT_TEST_DIE_AT_PTRACE, see runtime/guard/client.c.

Without the variable nothing of this exists: `reached` returns at once and `around` returns its function as it is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import SystemFault

VARIABLE = "CKPT_TEST_STOP_AT"

Perform = Callable[[Mapping[str, Any], threading.Event], Mapping[str, Any] | None]


def reached(point: str, stop: threading.Event | None = None) -> None:
    """The process is at POINT. STOP ends a wait."""
    for wanted in os.environ.get(VARIABLE, "").split(","):
        name, _, what = wanted.partition(":")
        if name == point:
            what, _, path = what.partition("=")
            _act(point, what, Path(path), stop)


def _act(point: str, what: str, path: Path, stop: threading.Event | None) -> None:
    try:
        path.with_suffix(".reached").touch(exist_ok=False)
    except FileExistsError:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fail":
        raise SystemFault(doing="testing", target=point, why="a test wants it to fail")
    elif what == "wait":
        while not path.with_suffix(".go").exists() and not (stop is not None and stop.is_set()):
            time.sleep(0.01)


def around(name: str, perform: Perform) -> Perform:
    """An action with its two points."""
    if VARIABLE not in os.environ:
        return perform

    def performed(facts: Mapping[str, Any], stop: threading.Event) -> Mapping[str, Any] | None:
        reached(name, stop)
        result = perform(facts, stop)
        reached(f"{name}-done", stop)
        return result

    return performed
