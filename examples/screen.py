"""What a person sees of the demo: one changing line on a terminal, a line per second elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_EVERY = 1.0
_CLEAR = "\r\x1b[K"


class Screen:
    """Lines that stay (`say`), and the present state (`live`)."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._colour = self.terminal and "NO_COLOR" not in os.environ
        self._began = time.monotonic()
        self._said_live = self._began
        self._drawn = False
        for stream in (sys.stdout, sys.stderr):
            # No display is worth an exception: a terminal without UTF-8 gets question marks.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]

    def say(self, text: str = "", *, strong: bool = False) -> None:
        self._wipe()
        print(f"\x1b[1m{text}\x1b[0m" if strong and self._colour else text, flush=True)

    def live(self, text: str, *, now: bool = False) -> None:
        """The state at this moment. NOW: worth a line of its own where lines stay."""
        moment = time.monotonic()
        stamp = f"{moment - self._began:5.1f} s  {text}"
        if self.terminal:
            print(f"{_CLEAR}{stamp}", end="", flush=True)
            self._drawn = True
        elif now or moment - self._said_live >= _PLAIN_EVERY:
            print(stamp, flush=True)
            self._said_live = moment

    def close(self) -> None:
        self._wipe()

    def _wipe(self) -> None:
        if self._drawn:
            print(_CLEAR, end="", flush=True)
            self._drawn = False


class Sparkline:
    """The last values as bars, the highest ever as the full one."""

    def __init__(self, width: int = 20) -> None:
        self._values: deque[float] = deque([0.0] * width, maxlen=width)
        self._highest = 1.0

    def add(self, value: float) -> None:
        self._values.append(value)
        self._highest = max(self._highest, value)

    def __str__(self) -> str:
        top = len(_BARS) - 1
        # A value above nothing is never shown as nothing.
        return "".join(
            _BARS[max(round(value / self._highest * top), 1 if value else 0)]
            for value in self._values
        )


def milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
