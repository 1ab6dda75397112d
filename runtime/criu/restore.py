"""One `criu restore`, carried out by the container's new monitor, up to the verdict.

    Restorer(...)        the hooks' pipes are there
    plan()               what the monitor's launch plan says about the restore
    started(control)     the monitor has CRIU running, waiting for its first image
    namespaces()         hook `setup-namespaces`: the new, empty network namespace is there; plug the network in
    prepared()           hook `post-restore`: everything is restored, not one instruction has run
    go() | abandon()     the verdict: resume, or CRIU kills what it restored

The image files go their own way: the caller runs the serving end of the streaming protocol meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.control import Control
from runtime.criu import failures, options
from runtime.criu.binary import Criu
from runtime.criu.hooks import Asked, Hooks
from runtime.errors import RuntimeFault, TimedOut


class Restorer:
    """Use as a context manager: leaving it before go() undoes the restore."""

    def __init__(self, criu: Criu, *, work: Path, own_network: bool, target: str) -> None:
        self._criu = criu
        self._target = target
        self._own_network = own_network
        self._work = work
        self.log = work / "restore.log"
        actions = ("setup-namespaces", "post-restore", "post-resume")
        self._hooks = Hooks(actions if own_network else actions[1:])
        self.directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._control: Control | None = None
        self.resumed_ns = 0
        """CLOCK_REALTIME when CRIU had let the tasks run."""

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()  # a hook that still waits fails, and CRIU kills what it restored
        os.close(self.directory)

    def plan(self, quiesced: Mapping[str, Any]) -> dict[str, Any]:
        """The `restore` entry of the launch plan. QUIESCED: what the monitor said when the dump began."""
        argv = options.restore_argv(
            self._criu.path,
            images=f"/proc/{os.getpid()}/fd/{self.directory}",
            log="restore.log",
            pidfile=str(self._work / "pid"),
            own_network=self._own_network,
        )
        return {
            "argv": [*argv, *self._hooks.options],
            "env": {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
            | self._hooks.environment,
            "output": str(self._work / "criu.out"),
            "pidfile": str(self._work / "pid"),
            "streams": quiesced["streams"],
            "processes": quiesced["processes"],
            "main_pid": quiesced["main_pid"],
            "started_ns": quiesced["started_ns"],
        }

    def started(self, control: Control) -> None:
        """CONTROL: the connection to the monitor just spawned. Waits until it has started CRIU."""
        self._control = control
        answer = control.expect(60.0, doing="starting the restore of")
        assert answer.get("event") == "criu", answer

    def namespaces(self, limit: float, check: Callable[[], None]) -> int:
        """The init's pid, with an empty network namespace to plug the network into; then call plugged()."""
        return self._wait_for("setup-namespaces", limit, check).init_pid

    def plugged(self) -> None:
        self._hooks.answer(0)

    def prepared(self, limit: float, check: Callable[[], None]) -> Asked:
        return self._wait_for("post-restore", limit, check)

    def go(self) -> int:
        """Let the tasks run; returns the init's pid once the monitor has it. Raises CriuFault."""
        assert self._control is not None
        self._hooks.answer(0)
        self.resumed_ns = self._wait_for("post-resume", 30.0, lambda: None).at_ns
        self._hooks.answer(0)
        answer = self._control.expect(30.0, doing="finishing the restore of")
        return int(answer["pid"])

    def abandon(self) -> None:
        """CRIU kills what it restored; the monitor ends."""
        self._hooks.answer(1)

    def fault(self) -> RuntimeFault:
        """What CRIU's log tells of its failure."""
        return failures.translate(self.log, doing="restoring", target=self._target)

    def _wait_for(self, action: str, limit: float, check: Callable[[], None]) -> Asked:
        assert self._control is not None
        until = time.monotonic() + limit
        while time.monotonic() < until:
            check()
            asked = self._hooks.next(0.02)
            if asked is not None and asked.action == action:
                return asked
            if self._failed():
                raise self.fault()
        raise TimedOut(
            doing="restoring",
            target=self._target,
            why=f"CRIU did not come to {action} in {limit:g} s",
            hint=f"its log is {self.log}",
            retry=True,
        )

    def _failed(self) -> bool:
        """The monitor says nothing before CRIU has ended, unless CRIU failed."""
        assert self._control is not None
        try:
            self._control.receive(0.001)
        except TimedOut:
            return False
        except RuntimeFault:
            return True
        return True
