"""The policy of the rounds, as a table: first round included."""

from __future__ import annotations

import pytest

from ckpt.ops.convergence import Decision, Limits, Next, Round, decide, expect, throughput

MIB = 1 << 20
LIMITS = Limits(max_downtime=0.05, max_rounds=6)


def rounds(*sizes: int, rate: float = 500 * MIB) -> list[Round]:
    return [Round(size * MIB, size * MIB / rate) for size in sizes]


@pytest.mark.parametrize(
    ("done", "dirty_mib", "expected"),
    [
        ([], 1024, Next.ROUND),  # nothing sent yet: never compared with zero
        ([], 0, Next.ROUND),  # even of an idle container everything has to go once
        (rounds(1024), 10, Next.FREEZE),  # 20 ms at 500 MiB/s
        (rounds(1024), 200, Next.ROUND),  # 400 ms, and shrinking
        (rounds(1024, 200), 190, Next.ROUND),  # not shrinking once: may be chance
        (rounds(1024, 200, 190), 185, Next.FREEZE),  # twice: its floor
        (rounds(1024, 800, 500, 300, 190), 120, Next.ROUND),  # slow, but it shrinks
        (rounds(1024, 800, 500, 300, 190, 120), 80, Next.FREEZE),  # max_rounds
        (rounds(64, rate=4 * MIB), 1, Next.FREEZE),  # 250 ms, but a round would gain nothing
        (rounds(1024, 1024), 1024, Next.FREEZE),  # writes everything all the time
    ],
)
def test_each_case_decides_as_the_table_says(
    done: list[Round], dirty_mib: int, expected: Next
) -> None:
    assert decide(done, dirty_mib * MIB, LIMITS).next is expected


def test_a_move_that_must_converge_gives_up_instead_of_freezing_for_long() -> None:
    limits = Limits(max_downtime=0.05, max_rounds=6, must_converge=True)
    assert decide(rounds(1024, 1000, 1000), 1000 * MIB, limits).next is Next.GIVE_UP
    assert decide(rounds(1024), 5 * MIB, limits).next is Next.FREEZE


def test_the_reason_is_said() -> None:
    decision = decide(rounds(1024), 10 * MIB, LIMITS)
    assert decision == Decision(Next.FREEZE, "the rest takes 20 ms")


def test_the_rate_is_that_of_the_largest_round() -> None:
    done = [Round(1000 * MIB, 2.0), Round(1 * MIB, 0.1)]
    assert throughput(done) == 500 * MIB


@pytest.mark.parametrize(
    ("dirty_rate", "most_rounds", "least_last"),
    [(0, 1, 0), (40 * MIB, 3, 0), (2000 * MIB, 3, 1000 * MIB)],
)
def test_what_is_expected_follows_the_same_policy(
    dirty_rate: float, most_rounds: int, least_last: int
) -> None:
    course = expect(1024 * MIB, lambda seconds: dirty_rate * seconds, 500 * MIB, LIMITS)
    assert 1 <= len(course.rounds) <= most_rounds
    assert course.last >= least_last
    assert course.size >= 1024 * MIB + course.last
    assert course.decision.next is Next.FREEZE


def test_what_is_expected_gives_up_where_the_policy_does() -> None:
    limits = Limits(max_downtime=0.05, max_rounds=6, must_converge=True)
    course = expect(1024 * MIB, lambda seconds: 2000 * MIB * seconds, 500 * MIB, limits)
    assert course.decision.next is Next.GIVE_UP


def test_a_rounds_own_cost_and_the_settling_let_more_be_written() -> None:
    def written(seconds: float) -> float:
        return 100 * MIB * seconds

    plain = expect(1024 * MIB, written, 500 * MIB, LIMITS)
    slow = expect(1024 * MIB, written, 500 * MIB, LIMITS, overhead=0.1, settling=0.2)
    assert plain.last == pytest.approx(written(plain.rest.seconds), abs=1)
    assert slow.last == pytest.approx(written(slow.rest.seconds + 0.2), abs=1)
    assert slow.seconds > plain.seconds
