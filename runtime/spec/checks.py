"""Small checks from which the description of a whole spec is put together.

A check looks at one JSON value at one path and reports every problem that it finds; it never
raises and never changes anything. Objects list their fields: what isn't listed is a problem, so
that nothing anybody asked for is ignored silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Json = Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `unsupported`: right by the specification, but not with ckpt."""

    path: str
    why: str
    unsupported: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


Report = Callable[[Problem], None]
Check = Callable[[Json, str, Report], None]


def brief(value: Json) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def text(*, pattern: str = "", what: str = "", empty: bool = False, most: int = 1 << 20) -> Check:
    """A string without NUL, matching `pattern` whole; `what` says in words what that means."""
    compiled = re.compile(pattern, re.DOTALL) if pattern else None

    def check(value: Json, path: str, report: Report) -> None:
        if not isinstance(value, str):
            report(Problem(path, f"has to be a string, not {brief(value)}"))
        elif "\0" in value or len(value) > most:
            report(Problem(path, "has a NUL character or is too long"))
        elif not value and not empty:
            report(Problem(path, "is empty"))
        elif compiled is not None and not compiled.fullmatch(value):
            report(Problem(path, f"{brief(value)} isn't {what}"))

    return check


def whole(low: int, high: int) -> Check:
    """A whole number."""

    def check(value: Json, path: str, report: Report) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            report(Problem(path, f"has to be a whole number, not {brief(value)}"))
        elif not low <= value <= high:
            report(Problem(path, f"{value} isn't within {low}..{high}"))

    return check


def flag(value: Json, path: str, report: Report) -> None:
    """true or false."""
    if not isinstance(value, bool):
        report(Problem(path, f"has to be true or false, not {brief(value)}"))


def one_of(known: Collection[str], *, unsupported: Mapping[str, str] | None = None) -> Check:
    """One of some words. `unsupported`: words of the specification that are refused, and why."""

    def check(value: Json, path: str, report: Report) -> None:
        if isinstance(value, str) and unsupported and value in unsupported:
            report(Problem(path, f"{value} isn't supported: {unsupported[value]}", True))
        elif not isinstance(value, str) or value not in known:
            report(Problem(path, f"{brief(value)} is none of {', '.join(sorted(known))}"))

    return check


def items(check_item: Check, *, least: int = 0, most: int = 65536) -> Check:
    """A list, each item checked."""

    def check(value: Json, path: str, report: Report) -> None:
        if not isinstance(value, list):
            report(Problem(path, f"has to be a list, not {brief(value)}"))
        elif len(value) < least:
            report(Problem(path, "is empty"))
        elif len(value) > most:
            report(Problem(path, f"has more than {most} items"))
        else:
            for number, item in enumerate(value):
                check_item(item, f"{path}[{number}]", report)

    return check


def table(check_value: Check) -> Check:
    """An object with any keys, each value checked."""

    def check(value: Json, path: str, report: Report) -> None:
        if not isinstance(value, dict):
            report(Problem(path, f"has to be an object, not {brief(value)}"))
            return
        for key, item in value.items():
            check_value(item, f"{path}.{key}", report)

    return check


def record(
    fields: Mapping[str, Check],
    *,
    required: Collection[str] = (),
    unsupported: Mapping[str, str] | None = None,
) -> Check:
    """An object with these fields and no others. null counts as absent.

    `unsupported`: fields of the specification that are refused, and why; empty ones are harmless.
    """

    def check(value: Json, path: str, report: Report) -> None:
        if not isinstance(value, dict):
            report(Problem(path or "the spec", f"has to be an object, not {brief(value)}"))
            return
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if item is None:
                continue
            if key in fields:
                fields[key](item, where, report)
            elif unsupported and key in unsupported:
                if item not in ("", [], {}, False, 0):
                    report(Problem(where, f"isn't supported: {unsupported[key]}", True))
            else:
                report(Problem(where, "is unknown, so it can't be honoured", True))
        for key in required:
            if value.get(key) is None:
                report(Problem(f"{path}.{key}" if path else key, "is missing"))

    return check


def anything(value: Json, path: str, report: Report) -> None:
    """Checked elsewhere, or of no consequence."""
