"""What passes from the monitor of a dumped container to that of the restored one.

CRIU's images end at the pipes: what is in a standard stream at the freeze is restored by nobody, since the restored
process gets new pipes. So once every task is frozen the old monitor reads the output to the end (it is in the log
then, once) and copies the input that nobody has read yet; the new monitor puts that into the new pipe. The ends of
jobs go the same way: also of those that ended between the dump's beginning and the freeze.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os

from runtime import syscalls

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from runtime.monitor.clients import Client
    from runtime.monitor.monitor import Monitor
    from runtime.monitor.process import Process

_ANSWER = 24 * 1024
"""Bytes of base64 in one packet."""


def settle(monitor: Monitor, client: Client, request: dict[str, Any]) -> None:
    """Every task is frozen: what is still under way in the streams is brought to rest.

    Answers {"input": BASE64, "job": N} and {"jobs": some of those that are known}, as often as it takes, and at last
    {"alive": [N...]}: a packet has its limits.
    """
    status = monitor.processes[0].streams.ours.get("status")
    if status is not None:
        monitor.on_status(status)
    for number, process in monitor.processes.items():
        process.drain()
        data = base64.b64encode(_unread(process)).decode()
        for start in range(0, len(data), _ANSWER):
            client.answer(input=data[start : start + _ANSWER], job=number)
    jobs = monitor.status.jobs
    for name in sorted(jobs):
        client.answer(jobs={name: jobs[name]})
    client.answer(alive=sorted(number for number in monitor.processes if number))


def _unread(process: Process) -> bytes:
    """Input that the process has not read, in the pipe and before it. It stays there."""
    fd = process.streams.ours.get("stdin")
    if fd is None:
        return b""
    # Opened through /proc, our writing end gives a reading one.
    read = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    copy_read, copy_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    found = []
    try:
        size = fcntl.fcntl(read, fcntl.F_GETPIPE_SZ)
        with contextlib.suppress(OSError):
            fcntl.fcntl(copy_write, fcntl.F_SETPIPE_SZ, size)
        with contextlib.suppress(BlockingIOError):
            syscalls.tee(read, copy_write, size)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(copy_read, 1 << 16):
                found.append(data)
    finally:
        for end in (read, copy_read, copy_write):
            os.close(end)
    return b"".join(found) + process.unsent


def carry_on(monitor: Monitor, client: Client, request: dict[str, Any]) -> None:
    """Restored, and nothing has run yet: take over what the old monitor left.

    Requests as settle() answers.
    """
    if monitor.restoring is None:
        client.answer(error="nothing is being restored")
        return
    if "input" in request:
        process = monitor.processes.get(request["job"])
        if process is not None:
            process.feed(base64.b64decode(request["input"], validate=True))
    if "jobs" in request:
        monitor.restoring.jobs.update(request["jobs"])
    if "alive" in request:
        alive = {0, *request["alive"]}
        for number in [number for number in monitor.processes if number not in alive]:
            gone = monitor.processes.pop(number)
            for fd in gone.streams.ours.values():
                monitor.loop.forget(fd)
            gone.end(monitor.restoring.jobs.get(str(number), {}))
    client.answer(ok=True)
