"""CRIU's logs, read while they are written, with its clock compared to ours.

CRIU writes "(00.012345) text", seconds since it started. When that was it doesn't say. But a line can't be read before
it is written: over hundreds of lines the least difference between when we saw a line and what it says is CRIU's start,
as exactly as the quickest of our looks.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LINE = re.compile(r"\((\d+\.\d+)\)\s*(.*)")
_LOOK = 0.0005


@dataclass(frozen=True, slots=True)
class Line:
    """at_ns: CLOCK_REALTIME."""

    at_ns: int
    text: str


class Tail:
    """Follows the newest file that fits one of PATTERNS below ROOT, from its appearance on; while the block runs."""

    def __init__(self, root: Path, pattern: str) -> None:
        self._root, self._pattern = root, pattern
        self._old = set(root.glob(pattern))
        self._seen: list[tuple[int, bytes]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        file = self._found()
        if file is None:
            return
        with file:  # it may be removed while we read
            while True:
                over = self._over.is_set()
                if data := file.read():
                    self._seen.append((time.time_ns(), data))
                elif over:
                    return
                time.sleep(_LOOK)

    def _found(self) -> BinaryIO | None:
        while not self._over.is_set():
            for path in self._root.glob(self._pattern):
                if path not in self._old:
                    with contextlib.suppress(OSError):
                        return path.open("rb", buffering=0)
            time.sleep(0.002)
        return None

    def lines(self) -> list[Line]:
        return lines(self._seen)


def lines(seen: Sequence[tuple[int, bytes]]) -> list[Line]:
    """What was SEEN (when, and which bytes), as lines with their own time."""
    found: list[tuple[int, int, str]] = []
    rest = b""
    for at, data in seen:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if match := _LINE.match(line.decode(errors="replace")):
                found.append((at, int(float(match[1]) * 1e9), match[2]))
    if not found:
        return []
    start = min(at - since for at, since, _ in found)
    return [Line(start + since, text) for _, since, text in found]


def pauses(
    found: Sequence[Line], begin_ns: int, end_ns: int, count: int
) -> list[tuple[Line, Line]]:
    """The COUNT longest steps between two lines that lie within a time, the longest first."""
    inside = [line for line in found if begin_ns <= line.at_ns <= end_ns]
    steps = list(zip(inside, inside[1:], strict=False))
    steps.sort(key=lambda step: step[0].at_ns - step[1].at_ns)
    return steps[:count]
