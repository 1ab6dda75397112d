"""When it matters that processes which forked have memory in common."""

from __future__ import annotations

import os

import pytest

from ckpt.ops.memory_use import MemoryUse, memory_use

MIB = 1 << 20


@pytest.mark.parametrize(
    ("total", "forked", "much"),
    [
        (100, 0, False),
        (100, 64, False),  # little
        (100, 65, True),
        (1000, 250, False),  # a quarter
        (1000, 251, True),
        (0, 0, False),
    ],
)
def test_much_is_more_than_a_little_and_more_than_a_part(
    total: int, forked: int, much: bool
) -> None:
    assert MemoryUse(total * MIB, forked * MIB).much_forked is much


def test_a_limit_counts_with_pages_apart() -> None:
    use = MemoryUse(300 * MIB, 200 * MIB)
    assert use.why_not_apart(0) == ""
    assert use.why_not_apart(-1) == ""
    assert use.why_not_apart(500 * MIB) == ""
    assert use.why_not_apart(499 * MIB).startswith("200 MiB are shared")
    assert use.why_not_apart(499 * MIB).endswith("more than its limit of 499 MiB")


def test_what_has_ended_counts_for_nothing() -> None:
    assert memory_use([1 << 30]) == MemoryUse(0, 0)
    assert memory_use([os.getpid(), 1 << 30]).total > MIB
