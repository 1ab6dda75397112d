"""Places at which a test may stop a migration: the one door, closed unless CKPT_TEST_STOP_AT is set.

    CKPT_TEST_STOP_AT=POINT:kill         the process kills itself there
    CKPT_TEST_STOP_AT=POINT:fail         the step fails there
    CKPT_TEST_STOP_AT=POINT:wait=PATH    makes PATH.reached and waits there until PATH.go exists

Points: `journal-STATE` when that record is on disk; an action's name (`freeze`, `prepare`, ...) when it begins, and
`ACTION-done` at its end; `dump` when the tasks are frozen and the first image comes.
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
    wanted = os.environ.get(VARIABLE)
    if wanted:
        _act(wanted, point, stop)


def _act(wanted: str, point: str, stop: threading.Event | None) -> None:
    name, _, what = wanted.partition(":")
    if name != point:
        return
    what, _, path = what.partition("=")
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise SystemFault(doing="testing", target=point, why="a test wants it to fail")
        case "wait":
            Path(f"{path}.reached").touch()
            while not Path(f"{path}.go").exists() and not (stop is not None and stop.is_set()):
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
