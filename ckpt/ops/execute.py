"""`ckpt exec`: a job in a running container; and `ckpt attach`: following its streams."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import termios
import tty
from dataclasses import dataclass
from typing import Any

from ckpt.ops.host import Host
from runtime import launch
from runtime.control import Control
from runtime.packets import past_reset

CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """What to run. user: `uid[:gid]` or names of the container's own /etc/passwd; "" as the container's process."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    terminal: bool = False
    stdin: bool = False


def start_job(host: Host, name: str, job: Job, *, attach: bool) -> tuple[Control, int]:
    """Start it; returns the connection, on which its streams follow if ATTACH, and the job's number."""
    container = host.find(name)
    container.require("running", doing="running a job in")
    control = Control.connect(container.paths, container.record.name)
    try:
        process = launch.job_process(
            container,
            args=job.args,
            env=job.env,
            cwd=job.cwd,
            user=job.user,
            terminal=job.terminal,
            console_size=own_size() if job.terminal else None,
        )
        answer = control.call("exec", process=process, stdin=job.stdin, attach=attach)
    except BaseException:
        control.close()
        raise
    return control, int(answer["job"])


def own_size() -> tuple[int, int] | None:
    """Rows and columns of our own terminal, if we have one."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines else None


def attach(host: Host, name: str, job: int = 0) -> tuple[Control, bool]:
    """A connection that carries the streams of a job (0: the container itself), and whether it has a terminal."""
    container = host.find(name)
    container.require("created", "running", doing="attaching to")
    control = Control.connect(container.paths, container.record.name)
    try:
        answer = control.call("attach", job=job)
    except BaseException:
        control.close()
        raise
    return control, bool(answer["terminal"])


LOST = {"exit_code": 125, "signal": None, "lost": True}
"""Its monitor is gone: how it ended is not known."""
DETACHED = {"exit_code": 0, "signal": None, "detached": True}


def follow(control: Control, *, terminal: bool, stdin: bool) -> dict[str, Any]:
    """Copy between our own standard streams and those of an attached process until it ends; returns its end.

    At a terminal, Ctrl-P Ctrl-Q leaves it running and returns DETACHED.
    """
    person = terminal and stdin and sys.stdin.isatty()
    with _raw_terminal(person), _Signals(control, terminal):
        return _copy(control, stdin=stdin, person=person)


class _Leaving:
    """Looks for Ctrl-P Ctrl-Q in what is typed. A Ctrl-P is held back until the next key decides."""

    KEYS = b"\x10\x11"

    def __init__(self) -> None:
        self._held = b""

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        """What may be passed on, and whether the person wants to leave."""
        data = self._held + data
        before, leave, _ = data.partition(self.KEYS)
        if leave:
            return before, True
        self._held = data[-1:] if data.endswith(self.KEYS[:1]) else b""
        return data[: len(data) - len(self._held)], False


def _copy(control: Control, *, stdin: bool, person: bool) -> dict[str, Any]:
    sock = control.sock
    sock.settimeout(None)
    leaving = _Leaving()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if stdin:
        poll.register(0, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                data = os.read(0, CHUNK)
                if not data:
                    poll.unregister(0)
                    _tell(sock, b"i")
                    continue
                if person:
                    data, leave = leaving(data)
                    if data:
                        _tell(sock, b"i" + data)
                    if leave:
                        return DETACHED
                else:
                    _tell(sock, b"i" + data)
            else:
                packet = past_reset(sock.recv, 1 << 18)
                if not packet:
                    return LOST
                kind, data = packet[:1], packet[1:]
                if kind == b"o":
                    _write(1, data)
                elif kind == b"e":
                    _write(2, data)
                elif kind == b"x":
                    end: dict[str, Any] = json.loads(data)
                    return end


def _tell(sock: socket.socket, packet: bytes) -> None:
    """To a monitor that may have ended; what it said last is still to be read."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(packet)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _raw_terminal:  # noqa: N801 - reads as a statement
    """Our own terminal in raw mode, so that every key reaches the container."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        if self._wanted:
            self._before = termios.tcgetattr(0)
            # Not FLUSH: what is typed already is for the container.
            tty.setraw(0, termios.TCSADRAIN)

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)


class _Signals:
    """Passes our signals on to the process; with a terminal, its size too."""

    NUMBERS = (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGINT,
    )

    def __init__(self, control: Control, terminal: bool) -> None:
        self._control = control
        self._terminal = terminal

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._pass) for number in self.NUMBERS}
        if self._terminal and sys.stdout.isatty():
            self._before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resize)
            self._resize()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass(self, number: int, _: object) -> None:
        _tell(self._control.sock, b"k%d" % number)

    def _resize(self, *_: object) -> None:
        size = os.get_terminal_size(1)
        _tell(self._control.sock, b"w%d,%d" % (size.lines, size.columns))
