"""Pouring into a part what comes out of a pipe, whose length nobody knows, or lies in memory."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable

from images.moving import Mover, available
from images.parts import Sink, writing


def pour_pipe(sink: Sink, name: str, pipe: int, mover: Mover) -> int:
    """The whole of PIPE, until its writer closes it, as the part NAME; returns its bytes."""
    total = 0
    with writing(sink, name) as part:
        while True:
            mover.wait(pipe, select.POLLIN)
            count = available(pipe)
            if count == 0:  # readable without a byte: the writer has closed it
                return total
            part.take(mover, pipe, count)
            total += count


def pour_bytes(sink: Sink, name: str, data: bytes, mover: Mover) -> None:
    """A small part from memory."""
    memory = os.memfd_create(name[:200], os.MFD_CLOEXEC)
    try:
        mover.write_all(memory, data)
        os.lseek(memory, 0, os.SEEK_SET)
        with writing(sink, name) as part:
            if data:
                part.take(mover, memory, len(data))
    finally:
        os.close(memory)


Extent = tuple[int, int, int]
"""Descriptor of a file, offset in it, and bytes."""


def pour_extents(sink: Sink, name: str, extents: Iterable[Extent], mover: Mover) -> int:
    """A part that lies in pieces; returns its bytes. EXTENTS is asked for the next when the last has been taken."""
    total = 0
    with writing(sink, name) as part:
        for fd, offset, size in extents:
            os.lseek(fd, offset, os.SEEK_SET)
            part.take(mover, fd, size)
            total += size
    return total
