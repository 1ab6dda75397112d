"""What all benchmarks have in common: their options, medians with their range, tables, and the last line."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DIGITS = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Measurements of one thing. Empty: it could not be measured, and everything is None."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(tuple(values))

    @property
    def median(self) -> float | None:
        return round(statistics.median(self.values), DIGITS) if self.values else None

    @property
    def low(self) -> float | None:
        return round(min(self.values), DIGITS) if self.values else None

    @property
    def high(self) -> float | None:
        return round(max(self.values), DIGITS) if self.values else None

    def percentile(self, share: float) -> float | None:
        """The nearest rank: the smallest value that SHARE (0 to 1) of them don't exceed."""
        if not self.values:
            return None
        rank = max(1, math.ceil(share * len(self.values)))
        return round(sorted(self.values)[rank - 1], DIGITS)

    def __str__(self) -> str:
        if not self.values:
            return "-"
        low, high = min(self.values), max(self.values)
        return f"{_short(statistics.median(self.values))} ({_short(low)}..{_short(high)})"


def ratio(value: float | None, base: float | None) -> float | None:
    """VALUE ÷ BASE, None where either is missing."""
    return round(value / base, 3) if value is not None and base else None


def parser(
    doc: str | None,
    *,
    runs: int = 5,
    storage: str = "",
    sizes: Sequence[int] = (),
    modes: Sequence[str] = (),
    per_ms: bool = False,
) -> argparse.ArgumentParser:
    """With the options that each of them has; and with those that several have, where a default is given."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=_positive, default=runs, help="default: %(default)s")
    made.add_argument("--json", action="store_true", help="the last line is JSON")
    if storage:
        made.add_argument(
            "--storage",
            choices=("tmpfs", "disk"),
            default=storage,
            help="where the hosts' files are. Default: %(default)s",
        )
    if sizes:
        made.add_argument("--sizes", type=numbers, default=list(sizes), metavar="MIB,...")
    if modes:
        made.add_argument("--modes", type=words, default=list(modes))
    if per_ms:
        made.add_argument("--per-ms", type=int, default=10, help="pages that the workload changes")
    return made


def numbers(text: str) -> list[int]:
    """An option's value such as 16,256,1024."""
    try:
        return [_positive(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error


def words(text: str) -> list[str]:
    """An option's value such as warm,cold."""
    return [word for word in text.split(",") if word]


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print it, the first column to the left."""
    lines = [[*map(str, heads)], *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip(), flush=True)


def say(text: str = "") -> None:
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy that was."""
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def last_line(options: argparse.Namespace, value: object) -> None:
    if options.json:
        print(json.dumps(value), flush=True)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    if value and abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is not positive")
    return number
