"""Project quotas as the kernel has them: quotactl(2) for the numbers, ioctl_xfs_fsgetxattr(2) for a file's project.

The structures are those of linux/quota.h, linux/dqblk_xfs.h and linux/fs.h; every file system with project quotas
takes the same calls. All raise OSError.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from runtime import syscalls

_PROJECT = 2  # PRJQUOTA
_Q_GETQUOTA = 0x800007
_Q_SETQUOTA = 0x800008
_Q_XGETQSTATV = 0x5808
_ACCOUNTED = 1 << 4  # FS_QUOTA_PDQ_ACCT
_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
_STATV = 160  # bytes of struct fs_quota_statv
_BLOCK = 1024  # QIF_DQBLKSIZE: limits are in these, whatever the file system's own are
_BLOCKS_VALID = 1  # QIF_BLIMITS: set the limits of space alone

_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_XFLAG_PROJINHERIT = 0x200

_DQBLK = struct.Struct("=8QI4x")
"""struct if_dqblk: hard and soft limit in blocks, bytes used, the same for files, two times, what is valid."""
_FSXATTR = struct.Struct("=5I8x")
"""struct fsxattr: flags, extent size, extents, project, extent size for copies on write."""


@dataclass(frozen=True, slots=True)
class Quota:
    """limit, used: bytes; limit 0: none. files: how many there are, directories among them."""

    limit: int
    used: int
    files: int


def state(fd: int) -> tuple[bool, bool]:
    """Whether the file system of FD counts by project, and whether it enforces limits."""
    asked = struct.pack("=b", 1).ljust(_STATV, b"\0")  # FS_QSTATV_VERSION1
    answer = syscalls.quotactl_fd(fd, _Q_XGETQSTATV << 8 | _PROJECT, 0, asked)
    (flags,) = struct.unpack_from("=H", answer, 2)
    return bool(flags & _ACCOUNTED), bool(flags & _ENFORCED)


def quota_of(fd: int, project: int) -> Quota:
    """What PROJECT has on the file system of FD. One that it never heard of has nothing."""
    try:
        command = _Q_GETQUOTA << 8 | _PROJECT
        answer = syscalls.quotactl_fd(fd, command, project, bytes(_DQBLK.size))
    except FileNotFoundError:  # XFS
        return Quota(0, 0, 0)
    blocks, _, used, _, _, files, *_ = _DQBLK.unpack(answer)
    return Quota(blocks * _BLOCK, used, files)


def set_limit(fd: int, project: int, limit: int) -> None:
    """LIMIT bytes (up to the next 1024) for PROJECT; 0: none."""
    blocks = -(-limit // _BLOCK)
    data = _DQBLK.pack(blocks, 0, 0, 0, 0, 0, 0, 0, _BLOCKS_VALID)
    syscalls.quotactl_fd(fd, _Q_SETQUOTA << 8 | _PROJECT, project, data)


def project_of(fd: int) -> int:
    """The project of an open file or directory; 0: none."""
    project: int = _FSXATTR.unpack(_attributes(fd))[3]
    return project


def set_project(fd: int, project: int) -> None:
    """Put an open directory into PROJECT, and with it whatever is made in it from now on."""
    flags, extent, extents, _, copies = _FSXATTR.unpack(_attributes(fd))
    changed = _FSXATTR.pack(flags | _XFLAG_PROJINHERIT, extent, extents, project, copies)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, changed)


def _attributes(fd: int) -> bytes:
    found = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
    assert len(found) == _FSXATTR.size
    return found


def opened(directory: os.PathLike[str] | str) -> int:
    """A descriptor to ask with."""
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
