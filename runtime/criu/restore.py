"""One `criu restore`, carried out by the container's new monitor, up to the verdict.

    plan()               what the monitor's launch plan says about the restore
    started(control)     the monitor has CRIU running, waiting for its first image
    namespaces()         hook `setup-namespaces`: the new, empty network namespace is there; plug the network in
    prepared()           hook `post-restore`: everything is restored, not one instruction has run
    go() | abandon()     the verdict: resume, or CRIU kills what it restored

The image files go their own way: the caller runs the serving end of the streaming protocol meanwhile.
CRIU's hooks ask the monitor, which passes the question on to us and our word back: see open_hooks there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.control import Control
from runtime.criu import failures, options
from runtime.criu.binary import Criu, netfilter
from runtime.criu.hooks import Asked, script
from runtime.errors import RuntimeFault, SystemFault, TimedOut
from runtime.veil import handover

HOOKS = ["setup-namespaces", "post-restore", "post-resume"]


class Restorer:
    """Use as a context manager. What was restored and got no go() ends with the connection to the monitor."""

    def __init__(
        self,
        criu: Criu,
        *,
        work: Path,
        programs: Path,
        own_network: bool,
        target: str,
        lazy: bool = False,
    ) -> None:
        self._criu = criu
        self._programs = programs
        self._target = target
        self._own_network = own_network
        self._lazy = lazy
        self._work = work
        self.log = work / "restore.log"
        self.directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._control: Control | None = None
        self._resumed = False
        self.resumed_ns = 0
        """CLOCK_REALTIME when CRIU had let the tasks run."""

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)

    def plan(self, quiesced: Mapping[str, Any], *, stop_early: bool) -> dict[str, Any]:
        """The `restore` entry of the launch plan. QUIESCED: what was noted when the dump began.

        STOP_EARLY: it waits at namespaces().
        """
        argv = options.restore_argv(
            self._criu.path,
            images=f"/proc/{os.getpid()}/fd/{self.directory}",
            log="restore.log",
            pidfile=str(self._work / "pid"),
            own_network=self._own_network,
        )
        libraries = [netfilter(self._programs)]
        if self._lazy:  # a pager listens in the same directory
            argv.append("--lazy-pages")
            libraries.append(handover.library(self._programs))
        return {
            "argv": [*argv, *script(self._programs)],
            "hooks": HOOKS if stop_early else HOOKS[1:],
            "env": {
                "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                "LD_PRELOAD": ":".join(map(str, libraries)),
            },
            "output": str(self._work / "criu.out"),
            "pidfile": str(self._work / "pid"),
            "streams": quiesced["streams"],
            "keys": sorted({key for _, key in quiesced["externals"]}),
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
        self._verdict(0)

    def prepared(self, limit: float, check: Callable[[], None]) -> Asked:
        return self._wait_for("post-restore", limit, check)

    def hold(self) -> None:
        """From now on what is prepared outlives us."""
        assert self._control is not None
        self._control.call("hold")

    def adopt(self, control: Control, action: str) -> None:
        """Recovery: speak to a monitor that another process started, whose hook ACTION waits for a word."""
        self._control = control
        self._resumed = action == "post-resume"

    def go(self) -> int:
        """Let the tasks run; returns the init's pid once the monitor has it. Raises CriuFault."""
        assert self._control is not None
        if self._resumed:
            self.resumed_ns = time.time_ns()
        else:
            self._verdict(0)
            self.resumed_ns = self._wait_for("post-resume", 30.0, lambda: None).at_ns
        self._verdict(0)
        answer = self._control.expect(30.0, doing="finishing the restore of")
        return int(answer["pid"])

    def abandon(self) -> None:
        """CRIU kills what it restored; the monitor ends."""
        self._verdict(1)

    def fault(self, why: str) -> RuntimeFault:
        """What CRIU's log tells of its failure, or WHY the monitor says it failed."""
        fault = failures.translate(self.log, doing="restoring", target=self._target)
        return (
            fault if fault.lines else SystemFault(doing="restoring", target=self._target, why=why)
        )

    def _verdict(self, status: int) -> None:
        assert self._control is not None
        self._control.send(op="verdict", status=status)

    def _wait_for(self, action: str, limit: float, check: Callable[[], None]) -> Asked:
        assert self._control is not None
        until = time.monotonic() + limit
        while time.monotonic() < until:
            check()
            try:
                message = self._control.receive(0.05)
            except TimedOut:
                continue
            if message.get("action") == action:
                return Asked(action, message["pid"], message["at_ns"])
            if "error" in message:
                check()
                raise self.fault(message["error"])
        raise TimedOut(
            doing="restoring",
            target=self._target,
            why=f"CRIU did not come to {action} in {limit:g} s",
            hint=f"its log is {self.log}",
            retry=True,
        )
