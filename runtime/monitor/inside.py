"""Reaching into the container's pid namespace: signals by the pids that it knows, the size of its terminals."""

from __future__ import annotations

import os

from runtime import syscalls


def send_signal(init_pid: int, inner: int, number: int) -> None:
    """Signal the process that is INNER in the pid namespace of INIT_PID. Raises OSError.

    There and not from here: between a look-up of the outer pid and the kill, that pid could be somebody else's.
    """
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            fd = os.open(f"/proc/{init_pid}/ns/pid", os.O_RDONLY)
            syscalls.setns(fd, syscalls.CLONE_NEWPID)
            code = _send_as_member(inner, number)
        finally:
            os._exit(code)
    error = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if error:
        raise OSError(error, os.strerror(error), str(inner))


def _send_as_member(inner: int, number: int) -> int:
    """Signal from a child, which alone is in the namespace that its parent entered; returns an errno."""
    sender = os.fork()
    if sender == 0:
        code = 0
        try:
            os.kill(inner, number)
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(sender, 0)[1])


def outer_pid(init_pid: int, inner: int) -> int:
    """The pid, here, of the process that is INNER in the container of INIT_PID. Raises ProcessLookupError."""
    ours = os.stat(f"/proc/{init_pid}/ns/pid").st_ino
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if _inner_pid(name) == inner and os.stat(f"/proc/{name}/ns/pid").st_ino == ours:
                return int(name)
        except OSError:
            continue  # it ended while we looked
    raise ProcessLookupError(3, "no such process", str(inner))


def _inner_pid(pid: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def resize(keeper: int, rows: int, columns: int) -> None:
    """Set the size of a terminal both of whose ends are inside: KEEPER (a pid here) holds its master."""
    import fcntl
    import struct
    import termios

    size = struct.pack("4H", rows, columns, 0, 0)
    pidfd = os.pidfd_open(keeper)
    try:
        for name in os.listdir(f"/proc/{keeper}/fd"):
            if os.readlink(f"/proc/{keeper}/fd/{name}").endswith("/ptmx"):
                master = syscalls.pidfd_getfd(pidfd, int(name))
                try:
                    fcntl.ioctl(master, termios.TIOCSWINSZ, size)
                finally:
                    os.close(master)
                return
    finally:
        os.close(pidfd)
