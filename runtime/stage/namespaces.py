"""User-namespace descriptors and id maps, and entering a container's namespaces."""

from __future__ import annotations

import os

from runtime import syscalls

# What a job joins, in one setns(2) on a pidfd: the kernel checks and installs them in the right order.
ALL = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWTIME
)

_FILES = {
    "user": syscalls.CLONE_NEWUSER,
    "mnt": syscalls.CLONE_NEWNS,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "pid": syscalls.CLONE_NEWPID,
    "net": syscalls.CLONE_NEWNET,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}


def write_id_maps(pid: int, base: int, size: int) -> None:
    """Map ids 0..size-1 of PID's user namespace to base..base+size-1 here (user_namespaces(7))."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 {base} {size}")


def user_namespace(base: int, size: int) -> int:
    """A descriptor of a fresh user namespace with that map; it is what idmapped mounts are made with."""
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done_w)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready_w, b"u")
            os.read(done_r, 1)
        finally:
            os._exit(0)
    try:
        os.close(ready_w)
        if os.read(ready_r, 1) != b"u":
            raise OSError(1, "cannot make a user namespace", "unshare")
        write_id_maps(pid, base, size)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready_r, done_r, done_w):
            os.close(fd)
        os.waitpid(pid, 0)


def foreign(pid: int) -> int:
    """The CLONE_NEW* flags of those namespaces of PID in which the caller isn't."""
    flags = 0
    for name, flag in _FILES.items():
        theirs = os.stat(f"/proc/{pid}/ns/{name}").st_ino
        if theirs != os.stat(f"/proc/self/ns/{name}").st_ino:
            flags |= flag
    return flags


def enter(pid: int) -> None:
    """Join every namespace of PID that is not ours already. Children, not the caller, enter the pid namespace."""
    flags = foreign(pid)
    pidfd = os.pidfd_open(pid)
    try:
        syscalls.setns(pidfd, flags)
    finally:
        os.close(pidfd)
    if flags & syscalls.CLONE_NEWUSER:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def set_ipc_sysctls(pid: int, values: dict[str, str], userns: dict[str, int] | None) -> None:
    """Write kernel settings {path under /proc/sys: value} in the ipc namespace of PID. Raises ChildProcessError.

    From outside, since inside /proc/sys is read-only. Since Linux 5.19 these files belong to the root of the ipc
    namespace's user namespace, before to the host's root: we try as one and then as the other.
    """
    read, write = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY)
            syscalls.setns(fd, syscalls.CLONE_NEWIPC)
            for path, value in values.items():
                _set(f"/proc/sys/{path}", value, userns["base"] if userns else 0)
        except OSError as error:
            os.write(write, f"setting {error.filename} to its value: {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 4096)
    os.close(read)
    os.waitpid(helper, 0)
    if said:
        raise ChildProcessError(said.decode())


def _set(path: str, value: str, owner: int) -> None:
    try:
        os.seteuid(owner)
        _write(path, value)
    except PermissionError:
        os.seteuid(0)
        _write(path, value)
    finally:
        os.seteuid(0)


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as error:
        error.filename = path  # a refused value is noticed by write(2), which knows no path
        raise
