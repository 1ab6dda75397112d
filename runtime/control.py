"""Talking to a container's monitor, and starting one. The other end is runtime/monitor/__main__.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.errors import (
    CommandNotFound,
    NotExecutable,
    NotFound,
    SystemFault,
    TimedOut,
    WrongState,
)
from runtime.files import publish_json
from runtime.packets import past_reset
from runtime.paths import ContainerPaths

MONITOR = Path(__file__).parent / "monitor" / "__main__.py"
PACKET = 1 << 18
# For the monitor, mallopt(3): what it once needed for a burst of output goes back to the kernel.
_FRUGAL = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
# As a shell has it: what the command's exit status would be.
_KINDS: dict[int, type[WrongState]] = {126: NotExecutable, 127: CommandNotFound}


class Control:
    """One connection to a monitor. Close it, or use it as a context manager."""

    def __init__(self, sock: socket.socket, name: str, errors: Path | None = None) -> None:
        self.sock = sock
        self._name = name
        self._errors = errors  # what the monitor wrote when it came to a bad end

    @classmethod
    def connect(cls, paths: ContainerPaths, name: str) -> Control:
        """Raises WrongState when no monitor is there: the container is not running."""
        try:
            directory = os.open(paths.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _not_running(name) from None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(f"/proc/self/fd/{directory}/ctl")
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            raise _not_running(name) from None
        finally:
            os.close(directory)
        return cls(sock, name)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, **message: Any) -> None:
        try:
            self.sock.send(json.dumps(message).encode())
        except OSError:
            raise SystemFault(
                doing="speaking to the monitor of", target=self._name, why="it is gone"
            ) from None

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """The next JSON message. TIMEOUT in seconds. Raises TimedOut; SystemFault when the monitor is gone."""
        self.sock.settimeout(timeout)
        try:
            data = past_reset(self.sock.recv, PACKET)
        except (TimeoutError, BlockingIOError):  # the latter for a timeout of 0
            raise TimedOut(
                doing="waiting for the monitor of",
                target=self._name,
                why=f"no answer in {timeout:g} s",
                retry=True,
            ) from None
        if not data:
            raise SystemFault(
                doing="waiting for the monitor of", target=self._name, why=self._why_ended()
            )
        message: dict[str, Any] = json.loads(data)
        return message

    def _why_ended(self) -> str:
        try:
            said = self._errors.read_text(errors="replace").strip() if self._errors else ""
        except OSError:
            said = ""
        return f"it ended: {said.splitlines()[-1][:300]}" if said else "it ended"

    def call(self, op: str, *, timeout: float = 30.0, **values: Any) -> dict[str, Any]:
        """Ask, and return the answer. An error of the monitor becomes WrongState or NotExecutable."""
        self.send(op=op, **values)
        return self.expect(timeout, doing=op)

    def expect(self, timeout: float | None, *, doing: str) -> dict[str, Any]:
        answer = self.receive(timeout)
        if "error" in answer:
            kind = _KINDS.get(answer.get("code", 0), WrongState)
            raise kind(doing=doing, target=self._name, why=answer["error"])
        return answer


def _not_running(name: str) -> WrongState:
    return WrongState(
        doing="reaching",
        target=f"container {name}",
        why="it is not running",
        hint=f"ckpt ps --all; ckpt start {name}",
    )


def spawn_monitor(
    paths: ContainerPaths, plan: dict[str, Any], name: str, *, pass_fds: tuple[int, ...] = ()
) -> Control:
    """Start a monitor on PLAN, detached from us, and return the connection to it.

    PASS_FDS: descriptors that PLAN names and the monitor inherits.
    """
    paths.run.mkdir(mode=0o711, parents=True, exist_ok=True)
    publish_json(paths.plan, plan)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = paths.home / "monitor.err"
    with log.open("wb") as errors:
        # Not to be waited for: it makes itself nobody's child at once.
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(MONITOR), str(paths.plan), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[theirs.fileno(), *pass_fds],
            env={**os.environ, **_FRUGAL},
            cwd="/",
        )
    theirs.close()
    if done.returncode:
        ours.close()
        raise SystemFault(doing="starting the monitor of", target=name, why="fork failed")
    return Control(ours, name, log)


def require_monitor_program() -> None:
    if not MONITOR.is_file():
        raise NotFound(doing="looking for", target=str(MONITOR), why="the installation is broken")
