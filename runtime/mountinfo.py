"""The mounts that a process sees: /proc/PID/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """device: as st_dev. root: the directory of the file system that is seen at the mount point.

    options: of the mount; super_options: of the file system.
    """

    id: int
    device: int
    root: str
    point: str
    options: frozenset[str]
    kind: str
    super_options: frozenset[str]


def mounts(pid: int | None = None) -> list[Mount]:
    """Those of process PID, else of our own, in the order in which they were made. Raises OSError."""
    path = f"/proc/{pid or 'self'}/mountinfo"
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return list(parse(file.read()))


def parse(text: str) -> Iterator[Mount]:
    for line in text.split("\n"):
        # By single spaces and newlines alone: other white space may be part of a path.
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(tail) < 3:
            continue
        major, minor = map(int, fields[2].split(":"))
        yield Mount(
            id=int(fields[0]),
            device=os.makedev(major, minor),
            root=_unescape(fields[3]),
            point=_unescape(fields[4]),
            options=frozenset(fields[5].split(",")),
            kind=tail[0],
            super_options=frozenset(tail[2].split(",")),
        )


def _unescape(text: str) -> str:
    """Spaces, tabs, newlines and backslashes are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
