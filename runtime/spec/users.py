"""Who "postgres" is, by the root file system's own /etc/passwd and /etc/group.

They are the container's data: read as a process inside would find them, so that a symbolic link
never shows us a file of the host, with bounds, and without waiting for a FIFO.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from runtime.errors import BadInput, from_os_error
from runtime.tree.beneath import open_in_root
from runtime.tree.ids import MAX_ID

_MOST = 4 << 20


@dataclass(frozen=True, slots=True)
class User:
    """Ids of the container, and the home directory that its passwd names ("/" if none)."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve(text: str, rootfs: str) -> User:
    """ "", "1000", "1000:100", "name", "name:group" as a user of the root directory `rootfs`
    ("" for none: then only numbers have a meaning).

    With a group only that one counts; without, the user's own from passwd (0 if unknown) and those
    that list the name in group. Raises BadInput for a name that isn't there.
    """
    user, colon, group = (text or "0").partition(":")
    if not user or (colon and not group):
        raise _bad(text, "isn't USER or USER:GROUP")
    accounts = _accounts(_read(rootfs, "etc/passwd"))
    groups = _groups(_read(rootfs, "etc/group"))
    number = _number(user)
    if number is None:
        found = next((a for a in accounts if a.name == user), None)
        if found is None:
            raise _bad(text, f"there is no user {user} in its /etc/passwd", "give a number")
        number = found.uid
    else:
        found = next((a for a in accounts if a.uid == number), None)
    home = (found.home if found else "") or "/"
    if group:
        return User(number, _group(text, group, groups), (), home)
    gid = found.gid if found else 0
    more = {g for _, g, members in groups if found and found.name in members}
    return User(number, gid, tuple(sorted(more - {gid})), home)


def _group(text: str, group: str, groups: list[tuple[str, int, list[str]]]) -> int:
    number = _number(group)
    if number is not None:
        return number
    for name, gid, _ in groups:
        if name == group:
            return gid
    raise _bad(text, f"there is no group {group} in its /etc/group", "give a number")


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    if int(text[:11]) > MAX_ID:
        raise _bad(text, f"the largest id is {MAX_ID}")
    return int(text)


def _read(rootfs: str, path: str) -> list[list[str]]:
    """The lines of a file, split at colons; none if there is no such file."""
    if not rootfs:
        return []
    try:
        root_fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, path.encode(), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(root_fd)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _bad(f"/{path}", "is no regular file")
            content = file.read(_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise from_os_error(error, doing="looking up the user in", target=f"/{path}") from error
    return [line.split(":") for line in content.decode("utf-8", "replace").splitlines()]


def _accounts(lines: list[list[str]]) -> list[_Account]:
    found = []
    for fields in lines:
        if len(fields) >= 6 and fields[0]:
            uid, gid = _safe(fields[2]), _safe(fields[3])
            if uid is not None and gid is not None:
                home = fields[5] if fields[5].startswith("/") and "\0" not in fields[5] else ""
                found.append(_Account(fields[0], uid, gid, home))
    return found


def _groups(lines: list[list[str]]) -> list[tuple[str, int, list[str]]]:
    found = []
    for fields in lines:
        gid = _safe(fields[2]) if len(fields) >= 3 else None
        if gid is not None and fields[0]:
            members = fields[3].split(",") if len(fields) > 3 else []
            found.append((fields[0], gid, members))
    return found


def _safe(text: str) -> int | None:
    """A line that is nonsense names nobody; it isn't worth refusing a container for."""
    try:
        return _number(text)
    except BadInput:
        return None


def _bad(text: str, why: str, hint: str = "") -> BadInput:
    return BadInput(doing="looking up the user", target=text, why=why, hint=hint)
