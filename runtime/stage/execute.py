"""The last steps of a forked child before it becomes the user's program: limits, credentials, filter, exec."""

from __future__ import annotations

import binascii
import fcntl
import os
import resource
import signal
import socket
import sys

from runtime import syscalls
from runtime.security.apply import apply_capabilities

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

# Where every container has the static init: a layer of its own puts it there.
INIT = "/.ckpt/init"


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def seal_imports() -> None:
    """From now on nothing can be imported: what lies at our modules' paths in a container is the container's code."""
    sys.meta_path.clear()


def reset_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and ignored signals are inherited through exec."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and number not in (32, 33):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def place_stdio(fds: dict[int, int]) -> None:
    """Make the descriptors {number there: descriptor here} the only ones that survive exec.

    All are first moved above the highest target, so that none is overwritten before it was copied.
    """
    top = max(fds) + 1
    moved = {target: _dup_above(fd, top) for target, fd in fds.items()}
    for target, fd in moved.items():
        os.dup2(fd, target, inheritable=True)


def _dup_above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def keep_only(fds: dict[int, int], channel: socket.socket) -> socket.socket:
    """Place FDS and close all else but the channel, which is returned at a place out of their way.

    A target of -1 stands for the container's own /dev/null: an outside descriptor could not be dumped.
    """
    high = _dup_above(channel.fileno(), 64)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    place_stdio({target: null if fd < 0 else fd for target, fd in fds.items()})
    syscalls.close_all_but(sorted({*fds, high}))
    channel.detach()
    return socket.socket(fileno=high)


def change_directory(process: dict[str, Any]) -> None:
    cwd = process["cwd"]
    try:
        os.chdir(cwd)
    except FileNotFoundError:
        os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)


def become(process: dict[str, Any]) -> None:
    """Take on the process's limits and credentials for good; what follows runs with them.

    The order is the kernel's: what needs privileges first, the seccomp filter last, since it may forbid the rest.
    """
    if process.get("oom_score_adj") is not None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(process["oom_score_adj"]))
    for limit in process.get("rlimits", []):
        resource.setrlimit(limit["resource"], (limit["soft"], limit["hard"]))
    os.umask(process["umask"])
    # Without no_new_privs loading a filter needs CAP_SYS_ADMIN, which we are about to drop.
    filter_first = process.get("seccomp") and not process["no_new_privileges"]
    if filter_first:
        _load_filter(process)
    apply_capabilities(
        process["capabilities"],
        uid=process["uid"],
        gid=process["gid"],
        groups=process["groups"],
    )
    if process["no_new_privileges"]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if process.get("seccomp") and not filter_first:
        _load_filter(process)


def _load_filter(process: dict[str, Any]) -> None:
    syscalls.seccomp_load(binascii.a2b_base64(process["seccomp"]), process["seccomp_flags"])


def argv_of(process: dict[str, Any], *, under_init: bool) -> list[str]:
    """The command line to execute: the static init is pid 1, and keeper of a job's terminal."""
    if under_init or process["terminal"]:
        size = process.get("console_size") or []
        return [
            INIT,
            *(["-t" + ",".join(map(str, size))] if process["terminal"] else []),
            *process["args"],
        ]
    return list(process["args"])


def execute(argv: list[str], env: dict[str, str]) -> None:
    """execvpe(3) with the container's own PATH. Raises OSError, never returns otherwise.

    os.execvpe would import a module for it, see seal_imports.
    """
    if "/" in argv[0]:
        os.execve(argv[0], argv, env)
    denied: OSError | None = None
    for directory in env.get("PATH", PATH).split(":"):
        try:
            os.execve(os.path.join(directory or ".", argv[0]), argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error  # a directory further on may have one that can be executed
    raise denied or FileNotFoundError(2, "not found in its PATH", argv[0])
