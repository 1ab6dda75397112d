"""Files with holes: where their data lies, and making a hole.

Standard library only, and little of it: the pager runs without site-packages.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges between two offsets that aren't holes, in order: lseek(2), SEEK_DATA. Raises OSError.

    Asked for one after the other: what changes meanwhile is seen where it lies ahead.
    """
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind here, or the file has shrunk
                return
            raise
        if stop <= start:
            return
        yield start, stop
        start = stop


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2): give back that part of a file; it reads as zeros, and the size stays."""
    if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"fd {fd}")
