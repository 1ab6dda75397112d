"""Becomes the container's first process: namespaces, root, then the workload.

usage: python3 inside.py ROOT WORKLOAD [ARG...]

ROOT is an empty directory; WORKLOAD a Python file, copied into the container's /tmp. Runs under
the distribution's Python as well, hence no imports from the project.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RDONLY, _MS_REMOUNT = 4096, 0x4000, 1 << 18, 1, 32
_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1


def call(name: str, *arguments: object) -> None:
    raw = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(_libc, name)(*raw) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def main(root: str, workload: str, *arguments: str) -> None:
    with open(workload, encoding="utf-8") as file:
        program = file.read()
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("unshare", _CLONE_NEWNS | _CLONE_NEWPID)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    call("mount", None, "/", None, _MS_REC | _MS_PRIVATE, None)
    call("mount", "/", root, None, _MS_BIND, None)
    os.chdir(root)
    call("mount", "proc", "proc", "proc", 0, None)
    call("mount", "tmpfs", "tmp", "tmpfs", 0, None)
    call("mount", "tmpfs", "dev", "tmpfs", 0, "mode=755")
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(f"dev/{name}", 0o20666, os.makedev(1, minor))
    os.mkdir("dev/shm")
    with open("tmp/workload.py", "w", encoding="utf-8") as file:
        file.write(program)
    os.mkdir("tmp/old")
    _libc.pivot_root.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    call("pivot_root", ".", "tmp/old")
    os.chdir("/")
    call("umount2", "/tmp/old", _MNT_DETACH)
    os.rmdir("/tmp/old")
    os.closerange(0, 1024)
    os.open("/dev/null", os.O_RDWR)
    os.dup2(0, 1)
    os.dup2(0, 2)
    os.set_inheritable(0, True)
    python = "/usr/bin/python3"
    # The run's tag, by which an aborted run's processes are found.
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "CKPT_TEST_RUN")}
    os.execve(python, [python, "/tmp/workload.py", *arguments], environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
