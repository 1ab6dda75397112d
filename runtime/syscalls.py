"""Linux system calls that Python's os module lacks: constants and thin wrappers, nothing else.

Each wrapper makes one call, tests the result, and raises OSError with the path or object that the call was about.
Numbers are those of x86-64 and aarch64; calls newer than 5.0 have the same number on both.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MACHINE = os.uname().machine
_X86 = MACHINE == "x86_64"

NR_PIVOT_ROOT = 155 if _X86 else 41
NR_SECCOMP = 317 if _X86 else 277
NR_BPF = 321 if _X86 else 280
NR_PIDFD_SEND_SIGNAL = 424
NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_CLOSE_RANGE = 436
NR_PIDFD_GETFD = 438
NR_MOUNT_SETATTR = 442
NR_QUOTACTL_FD = 443
NR_CAPSET = 126 if _X86 else 91

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
_ATTRIBUTES = (
    (MS_RDONLY, MOUNT_ATTR_RDONLY),
    (MS_NOSUID, MOUNT_ATTR_NOSUID),
    (MS_NODEV, MOUNT_ATTR_NODEV),
    (MS_NOEXEC, MOUNT_ATTR_NOEXEC),
    (MS_STRICTATIME, MOUNT_ATTR_STRICTATIME),
    (MS_NOATIME, MOUNT_ATTR_NOATIME),
    (MS_NODIRATIME, MOUNT_ATTR_NODIRATIME),
)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 1 << 1

F_SETPIPE_SZ = 1031
F_GETPIPE_SZ = 1032
SPLICE_F_NONBLOCK = 2

_LINUX_CAPABILITY_VERSION_3 = 0x20080522


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def _path(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _syscall(number: int, what: str, *args: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise _fail(what)
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _fail(f"unshare {flags:#x}")


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace (or, for a pidfd, several) that FD refers to."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)) < 0:
        raise _fail(f"setns fd {fd}")


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2)."""
    result = _libc.mount(
        _path(source), _path(target), _path(kind), ctypes.c_ulong(flags), _path(data)
    )
    if result < 0:
        raise _fail(target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(_path(target), ctypes.c_int(flags)) < 0:
        raise _fail(target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _syscall(NR_PIVOT_ROOT, new, _path(new), _path(old))


def open_tree(path: str, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC) -> int:
    """open_tree(2): a detached copy of the mount at PATH, as a descriptor."""
    return _syscall(NR_OPEN_TREE, path, ctypes.c_int(AT_FDCWD), _path(path), ctypes.c_uint(flags))


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach the detached mount FD at TARGET."""
    _syscall(
        NR_MOVE_MOUNT,
        target,
        ctypes.c_int(fd),
        b"",
        ctypes.c_int(AT_FDCWD),
        _path(target),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )


def fsopen(kind: str) -> int:
    """fsopen(2): a context in which a file system of KIND is configured."""
    return _syscall(NR_FSOPEN, kind, _path(kind), ctypes.c_uint(FSOPEN_CLOEXEC))


def fsconfig_string(fd: int, name: str, value: str) -> None:
    """fsconfig(2), FSCONFIG_SET_STRING; without a VALUE FSCONFIG_SET_FLAG."""
    command = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
    text = _path(value) if value else None
    _syscall(
        NR_FSCONFIG,
        f"the option {name}={value}",
        *(ctypes.c_int(fd), ctypes.c_uint(command), _path(name), text, ctypes.c_int(0)),
    )


def fsconfig_create(fd: int) -> None:
    """fsconfig(2), FSCONFIG_CMD_CREATE: make the file system."""
    _syscall(
        NR_FSCONFIG,
        "the file system",
        *(ctypes.c_int(fd), ctypes.c_uint(FSCONFIG_CMD_CREATE), None, None, ctypes.c_int(0)),
    )


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2): a detached mount of what the context FD made, as a descriptor."""
    return _syscall(
        NR_FSMOUNT,
        "the file system",
        *(ctypes.c_int(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes)),
    )


def mount_attributes(flags: int) -> int:
    """MS_* of mount(2) as MOUNT_ATTR_*; what has no such attribute is left out."""
    return sum(attribute for flag, attribute in _ATTRIBUTES if flags & flag)


def mount_setattr(
    fd: int, attr_set: int, *, attr_clr: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on a mount descriptor; struct mount_attr is four u64."""
    attr = struct.pack("=4Q", attr_set, attr_clr, 0, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall(
        NR_MOUNT_SETATTR,
        f"mount fd {fd}",
        ctypes.c_int(fd),
        b"",
        ctypes.c_uint(flags),
        ctypes.create_string_buffer(attr, len(attr)),
        ctypes.c_size_t(len(attr)),
    )


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    result: int = _libc.prctl(
        ctypes.c_int(option), *(ctypes.c_ulong(arg) for arg in (arg2, arg3, arg4, arg5))
    )
    if result < 0:
        raise _fail(f"prctl {option}")
    return result


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for the calling thread; each argument is a 64-bit mask."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    low = struct.pack("=3I", *(mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)))
    high = struct.pack("=3I", *(mask >> 32 for mask in (effective, permitted, inheritable)))
    _syscall(
        NR_CAPSET,
        "capset",
        ctypes.create_string_buffer(header, len(header)),
        ctypes.create_string_buffer(low + high, 24),
    )


def seccomp_load(program: bytes, flags: int = 0) -> int:
    """seccomp(2) SET_MODE_FILTER with a program of 8-byte struct sock_filter instructions.

    Returns the listener descriptor where FLAGS ask for one, else 0.
    """
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(
        struct.pack("H6xQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    return _syscall(
        NR_SECCOMP,
        "seccomp filter",
        ctypes.c_uint(SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(flags),
        fprog,
    )


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2)."""
    _syscall(
        NR_CLOSE_RANGE,
        f"fds {first}-{last}",
        ctypes.c_uint(first),
        ctypes.c_uint(last),
        ctypes.c_uint(0),
    )


def close_all_but(keep: Sequence[int]) -> None:
    """Close every descriptor that is not in KEEP."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate, here, of descriptor FD of another process."""
    return _syscall(
        NR_PIDFD_GETFD,
        f"fd {fd} of pidfd {pidfd}",
        ctypes.c_int(pidfd),
        ctypes.c_int(fd),
        ctypes.c_uint(0),
    )


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = os.fsencode(name)
    if _libc.sethostname(raw, ctypes.c_size_t(len(raw))) < 0:
        raise _fail(f"hostname {name}")


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    raw = os.fsencode(name)
    if _libc.setdomainname(raw, ctypes.c_size_t(len(raw))) < 0:
        raise _fail(f"domainname {name}")


def pipe_size(fd: int, size: int) -> int:
    """fcntl F_SETPIPE_SZ: bytes asked for; as many as fs.pipe-max-size allows are granted."""
    while size > 65536:
        try:
            return fcntl.fcntl(fd, F_SETPIPE_SZ, size)
        except PermissionError:
            size //= 2
    return fcntl.fcntl(fd, F_GETPIPE_SZ)


def tee(source: int, target: int, count: int) -> int:
    """Copy what is in pipe SOURCE into pipe TARGET without consuming it; at most COUNT bytes. Never waits."""
    done: int = _libc.tee(source, target, ctypes.c_size_t(count), SPLICE_F_NONBLOCK)
    if done < 0:
        raise _fail("tee")
    return done


def bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """bpf(2): the result and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _syscall(
        NR_BPF,
        f"bpf command {command}",
        ctypes.c_int(command),
        buffer,
        ctypes.c_uint(len(attr)),
    )
    return result, buffer.raw


def quotactl_fd(fd: int, command: int, identity: int, data: bytes) -> bytes:
    """quotactl_fd(2) of the file system that FD lies on: the structure DATA as the kernel left it."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _syscall(
        NR_QUOTACTL_FD,
        f"quota {identity}",
        ctypes.c_uint(fd),
        ctypes.c_uint(command),
        ctypes.c_uint(identity),
        buffer,
    )
    return buffer.raw
