"""Extended attributes: which travel, and the ids hidden inside two of them.

Kept: `user.*`, file capabilities, POSIX ACLs, and overlayfs's own marks. Dropped: labels of
security modules (a host's policy, not the container's data) and what holds local inode handles
(`trusted.overlay.origin`), which would point to a stranger's inode at the other end.
ACLs name users and groups, and a file capability (version 3) names the root user of its namespace:
both are shifted like owners (capabilities(7), linux/posix_acl_xattr.h, linux/capability.h).
"""

from __future__ import annotations

import errno
import os
import struct

from .ids import IdShift, to_container, to_host

Xattrs = tuple[tuple[bytes, bytes], ...]  # sorted by name

MAX_VALUE = 65536  # XATTR_SIZE_MAX
MAX_TOTAL = 512 * 1024  # of one file; ext4 stops at 64 KiB, xfs has no limit of its own

_CAPABILITY = b"security.capability"
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_PLAIN = frozenset((_CAPABILITY, *_ACLS))
_OVERLAY = frozenset(
    prefix + name
    for prefix in (b"trusted.overlay.", b"user.overlay.")
    for name in (b"opaque", b"redirect", b"metacopy", b"whiteout", b"impure", b"protattr")
)
_ACL_VERSION = 2
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAP_REVISION_3 = 0x03000000
_CAP_SIZE_3 = 24


def travels(name: bytes, *, overlay: bool) -> bool:
    """Does this attribute belong to the tree's data? `overlay`: keep overlayfs's marks too."""
    if name.startswith((b"trusted.overlay.", b"user.overlay.")):
        return overlay and name in _OVERLAY
    return name.startswith(b"user.") or name in _PLAIN


def read(target: int | bytes | str, *, overlay: bool, shift: IdShift = None) -> Xattrs:
    """The attributes that travel, ids as the container has them.

    Raises OSError, and ValueError for an id outside the container's range or absurd sizes.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ()
        raise
    if not names:
        return ()
    found = []
    for text in names:
        name = os.fsencode(text)
        if not travels(name, overlay=overlay):
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENODATA:  # removed since it was listed
                continue
            raise
        found.append((name, _shifted(name, value, shift, outward=True)))
    found.sort()
    check(found)
    return tuple(found)


def write(target: int | bytes | str, wanted: Xattrs, *, shift: IdShift = None) -> None:
    """Give a file exactly these attributes: others that travel are removed.

    Raises OSError, and ValueError for an id that doesn't fit.
    """
    follow = isinstance(target, int)
    try:
        present = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        present = []
    keep = {name for name, _ in wanted}
    for text in present:
        name = os.fsencode(text)
        if name not in keep and travels(name, overlay=True):
            os.removexattr(target, name, follow_symlinks=follow)
    for name, value in wanted:
        os.setxattr(
            target, name, _shifted(name, value, shift, outward=False), follow_symlinks=follow
        )


def check(pairs: list[tuple[bytes, bytes]] | Xattrs) -> None:
    """Raise ValueError for attributes larger than any sane file's."""
    if any(len(value) > MAX_VALUE for _, value in pairs):
        raise ValueError(f"an extended attribute is larger than {MAX_VALUE} bytes")
    if sum(len(name) + len(value) for name, value in pairs) > MAX_TOTAL:
        raise ValueError(f"its extended attributes exceed {MAX_TOTAL} bytes")


def _shifted(name: bytes, value: bytes, shift: IdShift, *, outward: bool) -> bytes:
    if shift is None or name not in _PLAIN:
        return value
    move = to_container if outward else to_host
    if name == _CAPABILITY:
        if len(value) != _CAP_SIZE_3:
            return value
        (magic,) = struct.unpack_from("<I", value)
        if magic & 0xFF000000 != _CAP_REVISION_3:
            return value
        (root,) = struct.unpack_from("<I", value, 20)
        return value[:20] + struct.pack("<I", move(root, shift))
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        raise ValueError(f"its attribute {name.decode()} is no ACL of version {_ACL_VERSION}")
    out = bytearray(value)
    for offset in range(4, len(value), 8):
        tag, _, who = struct.unpack_from("<HHI", value, offset)
        if tag in (_ACL_USER, _ACL_GROUP):
            struct.pack_into("<I", out, offset + 4, move(who, shift))
    return bytes(out)
