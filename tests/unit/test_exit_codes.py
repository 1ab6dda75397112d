"""docs/exit-codes.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from ckpt.cli import edge
from ckpt.ops import execute

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/exit-codes.md"


def documented() -> dict[str, set[str]]:
    """Code as printed → kinds, from the table's rows."""
    found: dict[str, set[str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"\d+( \+ N)?", cells[0]):
            assert cells[0] not in found, f"two rows for {cells[0]}"
            found[cells[0]] = set(re.findall(r"`([^`]+)`", cells[2]))
    return found


def in_code() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {
        str(edge.OK): set(),
        str(edge.USAGE): set(),
        str(edge.BUG): set(),
        str(execute.LOST["exit_code"]): set(),
        f"{edge.SIGNALLED} + N": set(),
    }
    for kind, code in edge.CODES:
        package = kind.__module__.split(".")[0]
        found.setdefault(str(code), set()).add(f"{package}.{kind.__name__}")
    return found


def test_every_code_and_kind_is_documented_and_nothing_else() -> None:
    assert documented() == in_code()


def test_codes_are_in_order() -> None:
    numbers = [int(code.split()[0]) for code in documented()]
    assert numbers == sorted(numbers)


def test_a_special_kind_is_found_before_the_general_one() -> None:
    for at, (kind, _) in enumerate(edge.CODES):
        for earlier, code in edge.CODES[:at]:
            if issubclass(kind, earlier):
                assert code == dict(edge.CODES)[kind], f"{kind} is hidden by {earlier}"
