"""The static init as a program.

It travels with the container, as a layer like any other, so that a destination needs no compiler and has the very same
file: CRIU compares the size of every mapped file, and a different build of the same source would differ.
"""

from __future__ import annotations

from pathlib import Path

from runtime.freestanding import program

SOURCE = Path(__file__).with_name("init.c")


def init_program(cache: Path) -> bytes:
    """The program's bytes; compiled into CACHE when it isn't there. Raises NotFound without a C compiler."""
    return program(SOURCE, cache).read_bytes()
