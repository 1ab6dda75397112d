"""Charts as SVG: spans on a time axis, bars, a curve. A drawing is 960 units wide and scales as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.cli.page.markup import Markup, el

WIDTH = 960
_LEFT, _RIGHT = 190, 14
_ROW = 22
_AXIS = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """kind: "source" or "destination"; note: what it says, beside it and when pointed at."""

    label: str
    begin: float
    end: float
    kind: str
    note: str


def steps(low: float, high: float, about: int = 8) -> list[float]:
    """Round numbers from LOW to HIGH, some ABOUT of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def spans(bars: Sequence[Bar], band: tuple[float, float] | None, label: str) -> Markup:
    """A row for each of BARS over an axis of milliseconds. BAND: a stretch of time to be marked."""
    low = min([bar.begin for bar in bars], default=0.0)
    high = max([bar.end for bar in bars], default=1.0)
    scale = (WIDTH - _LEFT - _RIGHT) / ((high - low) or 1.0)
    height = len(bars) * _ROW + _AXIS

    def x(at: float) -> float:
        return round(_LEFT + (min(max(at, low), high) - low) * scale, 2)

    parts: list[Markup] = []
    if band is not None:
        begin, end = x(band[0]), x(band[1])
        width = max(end - begin, 1.5)
        parts.append(el("rect", x=begin, y=0, width=width, height=height - _AXIS, class_="frozen"))
        parts += [
            el("line", x1=at, x2=at, y1=0, y2=height - _AXIS, class_="edge") for at in (begin, end)
        ]
    for at in steps(low, high):
        parts.append(el("line", x1=x(at), x2=x(at), y1=0, y2=height - _AXIS, class_="grid"))
        parts.append(
            el("text", _ms(at), x=x(at), y=height - 8, text_anchor="middle", class_="soft")
        )
    for row, bar in enumerate(bars):
        top = row * _ROW
        begin, end = x(bar.begin), x(bar.end)
        width = max(end - begin, 2.0)
        parts.append(el("text", bar.label, x=_LEFT - 8, y=top + 15, text_anchor="end"))
        parts.append(
            el("rect", el("title", f"{bar.label}: {bar.note}"), x=begin, y=top + 4, rx=2,
               width=width, height=_ROW - 8, class_=bar.kind)
        )  # fmt: skip
        left = begin + width > WIDTH - 150
        parts.append(
            el("text", bar.note, y=top + 15, class_="soft",
               x=begin - 5 if left else begin + width + 5, text_anchor="end" if left else None)
        )  # fmt: skip
    return _drawing(height, label, parts)


def bars(values: Sequence[tuple[str, float, str]], label: str) -> Markup:
    """A row for each of VALUES: its label, its value (drawn by its share of the largest), and what is said of it."""
    most = max([value for _, value, _ in values], default=0.0) or 1.0
    room = WIDTH - _LEFT - _RIGHT - 300
    parts: list[Markup] = []
    for row, (name, value, note) in enumerate(values):
        top, width = row * _ROW, max(room * value / most, 1.0)
        parts.append(el("text", name, x=_LEFT - 8, y=top + 15, text_anchor="end"))
        parts.append(
            el("rect", el("title", f"{name}: {note}"), x=_LEFT, y=top + 4, rx=2,
               width=round(width, 2), height=_ROW - 8, class_="source")
        )  # fmt: skip
        parts.append(el("text", note, x=_LEFT + round(width, 2) + 6, y=top + 15, class_="soft"))
    return _drawing(len(values) * _ROW, label, parts)


def curve(
    points: Sequence[tuple[float, float]],
    band: tuple[float, float] | None,
    label: str,
    unit: str,
) -> Markup:
    """POINTS: (milliseconds, value), the first in time first."""
    height, left = 200, 70
    bottom = height - _AXIS
    low, high = points[0][0], points[-1][0]
    most = max(value for _, value in points) or 1.0
    scale = (WIDTH - left - _RIGHT) / ((high - low) or 1.0)

    def x(at: float) -> float:
        return round(left + (min(max(at, low), high) - low) * scale, 2)

    def y(value: float) -> float:
        return round(bottom - (bottom - 10) * value / most, 2)

    parts: list[Markup] = []
    if band is not None:
        begin, end = x(band[0]), x(band[1])
        parts.append(
            el("rect", x=begin, y=0, width=max(end - begin, 1.5), height=bottom, class_="frozen")
        )
    for value in steps(0, most, 4):
        parts.append(
            el("line", x1=left, x2=WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid")
        )
        parts.append(
            el("text", f"{value:g} {unit}", x=left - 8, y=y(value) + 4, text_anchor="end",
               class_="soft")
        )  # fmt: skip
    for at in steps(low, high):
        parts.append(
            el("text", _ms(at), x=x(at), y=height - 8, text_anchor="middle", class_="soft")
        )
    line = " ".join(f"{x(at)},{y(value)}" for at, value in points)
    parts.append(
        el("polygon", points=f"{x(low)},{bottom} {line} {x(high)},{bottom}", class_="area")
    )
    parts.append(el("polyline", points=line, class_="curve"))
    return _drawing(height, label, parts)


def _drawing(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return el("svg", parts, viewBox=f"0 0 {WIDTH} {max(height, 1)}", role="img", aria_label=label)


def _ms(at: float) -> str:
    return f"{at / 1000:g} s" if abs(at) >= 10_000 else f"{at:g} ms"
