"""A directory's own project: given, limited, measured, taken away.

A project is a number. Files carry it, a directory passes it on to what is made in it, and the file system counts and
limits what all files with the same number take. Nobody gives these numbers out, and several roots of ckpt may lie on
one file system without knowing of each other, so a number is claimed where all of them see it, in the file system's own
count:

1. a random number of our range that has neither files nor a limit;
2. the empty directory is put into it;
3. now it must count exactly one file. If it counts more, somebody else has claimed the same number meanwhile: both take
   another.

Which project a directory has is asked of the directory, and what its limit is, of the file system. Neither is written
down a second time.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import Conflict, from_os_error
from runtime.quota import kernel

FIRST = 0x6B000000
COUNT = 1 << 24
"""Far from what people and other engines number from 0, 1 or 2^20 on, and positive for tools that print signed ones."""
_TRIES = 64

NOT_COUNTED = "no project quotas"
NOT_ENFORCED = "project quotas that are counted, but not enforced"
CLOSED = "project quotas, which a process in a user namespace can't set"


def problem(directory: Path) -> str:
    """Why files below DIRECTORY can't be limited, as what its file system has instead; "" if they can."""
    with _opened(directory) as fd:
        try:
            counted, enforced = kernel.state(fd)
            if not counted:
                return NOT_COUNTED
            if not enforced:
                return NOT_ENFORCED
            kernel.quota_of(fd, FIRST)
            kernel.project_of(fd)
        except PermissionError:
            return CLOSED
        except OSError:
            return NOT_COUNTED  # ENOSYS, EINVAL, ENOTTY, ESRCH: each file system says it in its own way
    return ""


def claim(directory: Path) -> int:
    """Put an empty DIRECTORY into a project of its own; its number. Raises RuntimeFault."""
    with _opened(directory) as fd:
        for _ in range(_TRIES):
            project = FIRST + secrets.randbelow(COUNT)
            before = kernel.quota_of(fd, project)
            if before.files or before.used or before.limit:
                continue
            kernel.set_project(fd, project)
            if kernel.quota_of(fd, project).files == 1:
                return project
    raise Conflict(
        doing="finding a project for",
        target=str(directory),
        why="every number is taken",
        retry=True,
    )


def of(directory: Path) -> int:
    """The project that DIRECTORY was put into; 0: none. Raises RuntimeFault."""
    with _opened(directory) as fd:
        try:
            project = kernel.project_of(fd)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
                return 0
            raise
    return project if FIRST <= project < FIRST + COUNT else 0


def limit(directory: Path, most: int) -> None:
    """Let the project of DIRECTORY take MOST bytes; 0: as many as there are. Raises RuntimeFault."""
    with _opened(directory) as fd:
        kernel.set_limit(fd, kernel.project_of(fd), most)


def quota(directory: Path) -> kernel.Quota:
    """What the project of DIRECTORY takes and may take. Raises RuntimeFault."""
    with _opened(directory) as fd:
        return kernel.quota_of(fd, kernel.project_of(fd))


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        fd = kernel.opened(directory)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, doing="limiting", target=str(directory)) from error
