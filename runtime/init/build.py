"""The static init as a program.

It travels with the container, as a layer like any other, so that a destination needs no compiler and has the very same
file: CRIU compares the size of every mapped file, and a different build of the same source would differ.
"""

from __future__ import annotations

from pathlib import Path

from runtime.compiled import compiled

SOURCE = Path(__file__).with_name("init.c")
_FLAGS = [
    "-Os",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
    "-s",
]


def init_program(cache: Path) -> bytes:
    """The program's bytes; compiled into CACHE when it isn't there. Raises NotFound without a C compiler."""
    return compiled(SOURCE, _FLAGS, cache).read_bytes()
