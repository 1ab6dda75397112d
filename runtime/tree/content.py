"""A regular file's bytes: where data lies, what they hash to.

The hash is a list of blake3 digests, one per 128 KiB block, and one over that list. So a hole costs
nothing however large it is (a block of zeros has a known digest), and the same list tells which
blocks of a file changed since it was sent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from blake3 import blake3

from runtime import holes

BLOCK = 128 * 1024
CHUNK = 1024 * 1024  # read at once; larger doesn't pay: blake3 does 6 GB/s from 128 KiB on
HASH = 32

_ZERO_BLOCK = blake3(bytes(BLOCK)).digest()
_buffers = threading.local()


def data_ranges(fd: int, size: int, allocated: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges below `size` that aren't holes. `allocated`: st_blocks * 512."""
    if allocated >= size:
        if size:
            yield 0, size
        return
    yield from holes.data_ranges(fd, 0, size)


def scratch() -> memoryview:
    """This thread's buffer of CHUNK bytes."""
    view = getattr(_buffers, "view", None)
    if view is None:
        view = _buffers.view = memoryview(bytearray(CHUNK))
    return view


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset`; returns how much there was before the end of the file."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def block_hashes(view: memoryview) -> bytes:
    """The digests of the blocks of `view`, which starts at a block's boundary."""
    return b"".join(
        blake3(view[start : start + BLOCK]).digest() for start in range(0, len(view), BLOCK)
    )


def zero_hashes(blocks: int) -> bytes:
    """The digests of so many whole blocks of zeros."""
    return _ZERO_BLOCK * blocks


def content_digest(fd: int, size: int, allocated: int) -> bytes:
    """The digest of `size` bytes of content; holes count as the zeros they read as.

    Raises ValueError if the file has shrunk meanwhile, OSError.
    """
    total = blake3(size.to_bytes(8, "little"))
    for start, end in windows(data_ranges(fd, size, allocated), size):
        if start < 0:  # a hole of -start blocks
            hole = -start
            while hole > 0:
                total.update(zero_hashes(min(hole, 4096)))
                hole -= 4096
            continue
        view = scratch()[: end - start]
        if read_at(fd, view, start) < end - start:
            raise ValueError("the file shrank while it was read")
        total.update(block_hashes(view))
    return total.digest()


def windows(ranges: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Cut a file into windows of up to CHUNK bytes at block boundaries, skipping holes.

    Yields (start, end) where there is data, (-blocks, 0) for whole blocks without, in order,
    covering `size` exactly. A last partial block that is a hole is given as a window.
    """
    position = 0
    whole = size - size % BLOCK
    for first, last in ranges:
        start = max(first - first % BLOCK, position)
        end = min(last + -last % BLOCK, size)
        if start > position:
            yield -((start - position) // BLOCK), 0
            position = start
        while position < end:
            upto = min(position + CHUNK, end)
            yield position, upto
            position = upto
    if position < whole:
        yield -((whole - position) // BLOCK), 0
        position = whole
    if position < size:
        yield position, size
