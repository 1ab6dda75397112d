"""Which files a process could change without leaving a time stamp.

Writes through a shared mapping stamp a file only when a page becomes dirty, and on tmpfs not even
then. While the tasks are frozen, these files are the suspects for the last round: see index.py.
"""

from __future__ import annotations

import os
import re

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def shared_writable(pid: int) -> set[bytes]:
    """Absolute paths, as the process sees them, of its writable shared file mappings.

    Deleted files are left out: they have no name to send (CRIU carries them). Raises OSError.
    """
    found = set()
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            # address perms offset dev inode path (proc_pid_maps(5))
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) < 6 or len(fields[1]) < 4:
                continue
            if fields[1][1:2] != b"w" or fields[1][3:4] != b"s":
                continue
            path = fields[5]
            if path.startswith(b"/") and not path.endswith(b" (deleted)"):
                found.add(_ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), path))
    return found


def below(paths: set[bytes], directory: str) -> frozenset[bytes]:
    """Those of `paths` below `directory` (as the process sees it), relative to it: as suspects
    for diff()."""
    prefix = os.fsencode(directory).rstrip(b"/") + b"/"
    return frozenset(path[len(prefix) :] for path in paths if path.startswith(prefix))
