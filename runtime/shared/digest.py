"""digest.c, which tells pages that have changed, for Python. It lets go of Python's lock."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from runtime.freestanding import library

PAGE = 4096
DIGEST = 24
"""Bytes for each page. Zeros: there is none."""
_KEY = 4 * (PAGE // 4 + 8)


class Digests:
    """Of pages, under a key of its own."""

    def __init__(self, programs: Path) -> None:
        """PROGRAMS: where what we compile lies. Raises NotFound without a compiler."""
        self._compare = _loaded(str(programs)).compare
        self._key = os.urandom(_KEY)

    def changed(
        self, data: memoryview, known: bytearray, page: int, *, keep: bool = False
    ) -> list[int]:
        """Which pages of DATA, writable memory in whole pages, aren't what KNOWN has from page number PAGE on.

        KEEP: KNOWN has it from now on. It must not be resized meanwhile.
        """
        count = len(data) // PAGE
        found = bytearray(count)
        byte = ctypes.c_char
        changed = self._compare(
            ctypes.byref(byte.from_buffer(data)), count, self._key,
            ctypes.byref(byte.from_buffer(known, page * DIGEST)),
            ctypes.byref(byte.from_buffer(found)), keep,
        )  # fmt: skip
        if not changed:
            return []
        return [number for number, other in enumerate(found) if other]


@cache
def _loaded(programs: str) -> ctypes.CDLL:
    source = Path(__file__).with_name("digest.c")
    loaded = ctypes.CDLL(str(library(source, Path(programs))))
    loaded.compare.restype = ctypes.c_uint64
    loaded.compare.argtypes = [
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int,
    ]  # fmt: skip
    return loaded
