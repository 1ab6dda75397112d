"""Becomes the container's first process: namespaces, root, then the program.

usage: python3 inside.py ROOT BASE PROGRAM [ARG...]

ROOT: a directory that holds PROGRAM and empty directories proc, dev, tmp, old. BASE: the first host id of the
container's ids, 0 for no user namespace; the program then runs as user 1000 of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pivot_root.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
IDS = 65536


def call(name: str, *arguments: object) -> None:
    raw = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(_libc, name)(*raw) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def enter_user_namespace(base: int) -> None:
    """Into a new user namespace whose ids are mapped by a helper outside."""
    outside, inside = os.pipe()
    mapped_r, mapped_w = os.pipe()
    me = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.read(outside, 1)
        for kind in ("uid", "gid"):
            with open(f"/proc/{me}/{kind}_map", "w", encoding="ascii") as file:
                file.write(f"0 {base} {IDS}\n")
        os.write(mapped_w, b".")
        os._exit(0)
    call("unshare", _CLONE_NEWUSER)
    os.write(inside, b".")
    os.read(mapped_r, 1)
    os.waitpid(helper, 0)
    for fd in (outside, inside, mapped_r, mapped_w):
        os.close(fd)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def main(root: str, base: int, program: str, *arguments: str) -> None:
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if base:
        enter_user_namespace(base)
    call("unshare", _CLONE_NEWNS | _CLONE_NEWPID)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    call("mount", None, "/", None, _MS_REC | _MS_PRIVATE, None)
    call("mount", root, root, None, _MS_BIND, None)
    os.chdir(root)
    call("mount", "proc", "proc", "proc", 0, None)
    call("mount", "tmpfs", "tmp", "tmpfs", 0, "mode=1777")
    call("pivot_root", ".", "old")
    os.chdir("/")
    call("umount2", "/old", _MNT_DETACH)
    os.closerange(0, 1024)
    os.open("/tmp/null", os.O_RDWR | os.O_CREAT, 0o666)  # a device would need rights
    os.dup2(0, 1)
    os.dup2(0, 2)
    os.set_inheritable(0, True)
    if base:
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "CKPT_TEST_RUN")}
    os.execve(program, [program, *arguments], environment)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
