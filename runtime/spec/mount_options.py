"""A mount's options, as in fstab, into what mount(2) takes: flags, a propagation, and data.

OCI runtime-spec, config.md "Mounts". The words are mount(8)'s. Options of a file system itself
(size=, mode=, ...) become data, if the type has them: a misspelt one is refused here, by name,
rather than by the kernel with EINVAL for all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime import syscalls as sc

MS_SYNCHRONOUS = 0x10
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_UNBINDABLE = 0x20000

_FLAGS: dict[str, tuple[int, int]] = {  # word: (set, clear)
    "defaults": (0, 0),
    "ro": (sc.MS_RDONLY, 0),
    "rw": (0, sc.MS_RDONLY),
    "suid": (0, sc.MS_NOSUID),
    "nosuid": (sc.MS_NOSUID, 0),
    "dev": (0, sc.MS_NODEV),
    "nodev": (sc.MS_NODEV, 0),
    "exec": (0, sc.MS_NOEXEC),
    "noexec": (sc.MS_NOEXEC, 0),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "atime": (0, sc.MS_NOATIME),
    "noatime": (sc.MS_NOATIME, 0),
    "diratime": (0, sc.MS_NODIRATIME),
    "nodiratime": (sc.MS_NODIRATIME, 0),
    "relatime": (sc.MS_RELATIME, 0),
    "norelatime": (0, sc.MS_RELATIME),
    "strictatime": (sc.MS_STRICTATIME, 0),
    "nostrictatime": (0, sc.MS_STRICTATIME),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "bind": (sc.MS_BIND, 0),
    "rbind": (sc.MS_BIND | sc.MS_REC, 0),
}
_PROPAGATION: dict[str, int] = {
    "private": sc.MS_PRIVATE,
    "rprivate": sc.MS_PRIVATE | sc.MS_REC,
    "slave": sc.MS_SLAVE,
    "rslave": sc.MS_SLAVE | sc.MS_REC,
    "shared": sc.MS_SHARED,
    "rshared": sc.MS_SHARED | sc.MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | sc.MS_REC,
}
# What a bind mount can have for itself; all else belongs to the file system.
_BIND_FLAGS = (
    sc.MS_BIND
    | sc.MS_REC
    | sc.MS_RDONLY
    | sc.MS_NOSUID
    | sc.MS_NODEV
    | sc.MS_NOEXEC
    | sc.MS_RELATIME
)
_IDMAP = ("idmap", "ridmap")
_DATA: dict[str, str] = {  # file system: its own options
    "tmpfs": "size nr_blocks nr_inodes mode uid gid huge mpol inode32 inode64 noswap",
    "devpts": "newinstance ptmxmode mode uid gid max",
    "proc": "hidepid gid subset",
    "mqueue": "",
    "sysfs": "",
    "cgroup": "",
    "cgroup2": "",
    "bind": "",
}
TYPES = frozenset(_DATA)


@dataclass(frozen=True, slots=True)
class Parsed:
    """`flags`, `propagation`: MS_*; `data`: for mount(2); `idmap`: "", "idmap" or "ridmap"."""

    flags: int
    propagation: int
    data: str
    idmap: str


def mount_type(kind: str, options: Iterable[str]) -> str:
    """The type that counts: "bind" for whatever has the option, or for the type bind itself."""
    if kind == "bind" or any(option in ("bind", "rbind") for option in options):
        return "bind"
    return kind


def parse(kind: str, options: Iterable[str]) -> Parsed:
    """Parse the options of a mount whose type, by mount_type(), is `kind`.

    Later words win over earlier ones. Raises ValueError naming the option.
    """
    flags, propagation, idmap = 0, 0, ""
    data: list[str] = []
    for option in options:
        if option in _FLAGS:
            set_bits, clear_bits = _FLAGS[option]
            flags = (flags & ~clear_bits) | set_bits
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _IDMAP:
            idmap = option
        else:
            _check_data(kind, option)
            data.append(option)
    if kind == "bind":
        # The type says it already: {"type": "bind"} without the option is common.
        flags |= sc.MS_BIND
        if flags & ~_BIND_FLAGS:
            raise ValueError("of the flags a bind mount can have ro, nosuid, nodev, noexec only")
    elif idmap:
        raise ValueError(f"{idmap} is for bind mounts")
    return Parsed(flags, propagation, ",".join(data), idmap)


def _check_data(kind: str, option: str) -> None:
    name, _, value = option.partition("=")
    if name not in _DATA.get(kind, "").split():
        raise ValueError(f"the option {option!r} isn't known for {kind}")
    if "," in value:
        raise ValueError(f"the option {option!r} has a comma in its value")
