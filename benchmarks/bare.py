"""The least container that CRIU dumps: own pid, mount, UTS and IPC namespaces, and a root directory."""

from __future__ import annotations

import os

from runtime import syscalls

_NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
)


def start(root: str, argv: list[str]) -> int:
    """Run ARGV with ROOT (a mount point with proc and old in it) as its root; the process id.

    It is the child of whoever reaps orphans here.
    """
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            syscalls.unshare(_NAMESPACES)
            inner = os.fork()
            if inner == 0:
                _become(root, argv)
            os.write(writer, str(inner).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        pid = int(pipe.read())
    os.waitpid(middle, 0)
    return pid


def bind_to_itself(path: str) -> None:
    """Make PATH a mount point."""
    syscalls.mount(path, path, None, syscalls.MS_BIND | syscalls.MS_REC)


def mount_tmpfs(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    syscalls.mount("tmpfs", path, "tmpfs", 0, "size=90%")


def _become(root: str, argv: list[str]) -> None:
    os.setsid()
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    os.chdir(root)
    syscalls.mount("proc", "proc", "proc", 0)
    syscalls.pivot_root(".", "old")
    os.chdir("/")
    syscalls.umount("/old", syscalls.MNT_DETACH)
    # Nothing from outside stays open: CRIU would not find the mount of it.
    syscalls.close_range(0)
    os.open("/null", os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(0, 1)
    os.dup2(0, 2)
    os.set_inheritable(0, True)
    os.execve(argv[0], argv, {})
