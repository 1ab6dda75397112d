"""OCI hooks (runtime-spec, config.md "POSIX-platform Hooks"): programs that get the container's state on stdin."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any


def run(hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Run each in order; raises ChildProcessError, naming the hook, when one fails or exceeds its timeout (s)."""
    for hook in hooks:
        _run(hook, json.dumps(state).encode())


def _run(hook: dict[str, Any], state: bytes) -> None:
    read, write = os.pipe()
    said = os.memfd_create("hook")  # not a pipe: one that fills up would stop the hook
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            for number, fd in enumerate((read, null, said)):
                os.dup2(fd, number)
            os.closerange(3, 1024)
            env = dict(entry.split("=", 1) for entry in hook.get("env", []))
            os.execve(hook["path"], hook.get("args") or [hook["path"]], env)
        finally:
            os._exit(127)
    os.close(read)
    os.close(null)
    with contextlib.suppress(BrokenPipeError):
        os.write(write, state)
    os.close(write)
    status = _wait(pid, hook.get("timeout"))
    with open(said, "rb") as file:
        file.seek(0)
        lines = file.read(1 << 16).decode(errors="replace").strip().splitlines()
    if status is None:
        raise ChildProcessError(f"hook {hook['path']} did not end in {hook['timeout']} s")
    if status:
        last = f": {lines[-1][:300]}" if lines else ""
        raise ChildProcessError(f"hook {hook['path']} failed with status {status}{last}")


def _wait(pid: int, timeout: float | None) -> int | None:
    if timeout is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
