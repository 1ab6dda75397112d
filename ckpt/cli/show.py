"""Tables for people, JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def emit_json(value: Any, *, err: bool = False) -> None:
    """One JSON value on one line. ERR: to stderr, where stdout has other things."""
    click.echo(json.dumps(value, default=str), err=err)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned columns; the last is as long as it likes."""
    lines = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def size(count: float) -> str:
    """Bytes with a binary unit: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def ago(ns: int) -> str:
    """How long ago a moment was, in its largest unit."""
    seconds = max(0, (time.time_ns() - ns) // 10**9)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def millis(ns: float) -> str:
    return f"{ns / 1e6:.0f} ms"
