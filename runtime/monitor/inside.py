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


def resize(init_pid: int, stdout: int, rows: int, columns: int) -> None:
    """Set the size of the terminal whose output comes to us on STDOUT.

    Both of its ends are inside: we borrow the master from its keeper (init.c), who writes to that pipe.
    """
    import fcntl
    import struct
    import termios

    pipe = os.readlink(f"/proc/self/fd/{stdout}")
    size = struct.pack("4H", rows, columns, 0, 0)
    for keeper in _descendants(init_pid):
        if _target(keeper, "1") != pipe:
            continue
        pidfd = os.pidfd_open(keeper)
        try:
            for name in os.listdir(f"/proc/{keeper}/fd"):
                if _target(keeper, name).endswith("/ptmx"):
                    master = syscalls.pidfd_getfd(pidfd, int(name))
                    try:
                        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
                    finally:
                        os.close(master)
                    return
        finally:
            os.close(pidfd)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:  # which grows meanwhile
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children") as file:
                    found += [int(word) for word in file.read().split()]
        except OSError:
            continue  # it ended while we looked
    return found


def _target(pid: int, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""  # it ended while we looked
