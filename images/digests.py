"""blake3 of files, in constant memory."""

from __future__ import annotations

import os

from blake3 import blake3

from images.moving import BUFFER


def file_digest(fd: int) -> bytes:
    """blake3 (32 bytes) of a regular file from its first byte to its end.

    Read into a buffer rather than mapped: mapped pages would count as resident memory.
    """
    hasher = blake3()
    buffer = memoryview(bytearray(BUFFER))
    at = 0
    while got := os.preadv(fd, [buffer], at):
        hasher.update(buffer[:got])
        at += got
    return hasher.digest()
