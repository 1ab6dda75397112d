"""What a forecast says of containers whose memory and writing are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.ops import forecast
from ckpt.ops.convergence import Limits
from ckpt.ops.forecast import (
    LOOKING,
    MODES,
    PLACING,
    Circumstances,
    Way,
    assumed,
    cold,
    lazy,
    lazy_pre_copy,
    make,
    warm,
)
from ckpt.ops.leftover import (
    FILES,
    HUGE,
    LOCKED,
    MEMFD,
    READ_ONLY,
    SHARED,
    STACKS,
    SYSTEM_V,
    Content,
    Leftover,
    kind_of,
)
from ckpt.ops.observe import Observed, Sample
from ckpt.ops.writing import Curve
from runtime.tracking.vmas import Vma

MIB = 1 << 20
GIB = 1 << 30
FAST = Way(rate=600e6, pace=500e6, round_trip=0.0005)


def writes(per_second: float, most: float = float(GIB)) -> Curve:
    """Ever new pages, until all of MOST are written."""
    return (
        Curve(((most / per_second, most), (2 * most / per_second, most))) if per_second else Curve()
    )


def at(
    memory: int = GIB,
    writing: Curve = Curve(),  # noqa: B008 - immutable
    left: tuple[Leftover, ...] = (),
    way: Way = FAST,
    **more: object,
) -> Circumstances:
    content = Content(tasks=1, mappings=20, carried=memory, left=left)
    seen = Observed(3.0, "wp-async", content, writing)
    return Circumstances(seen, way, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "per_second", "fewest", "most", "frozen_at_most"),
    [
        (16 * MIB, 0, 1, 1, 0),
        (GIB, 0, 1, 1, 0),
        (GIB, 40 * MIB, 1, 3, 20 * MIB),  # ten pages a millisecond
        (GIB, 200 * MIB, 2, 6, 90 * MIB),
        (GIB, 2 * GIB, 2, 2, GIB),  # faster than it is sent: never gets less
    ],
)
def test_rounds_and_the_frozen_rest_follow_from_memory_and_writing(
    memory: int, per_second: float, fewest: int, most: int, frozen_at_most: int
) -> None:
    found = warm(at(memory, writes(per_second, memory)))
    assert found.possible
    assert fewest <= len(found.rounds) - 1 <= most  # besides the rest
    assert found.frozen <= frozen_at_most
    assert found.size == sum(one.size for one in found.rounds) + found.frozen
    assert found.sent >= memory


def test_downtime_of_warm_hardly_grows_with_memory_and_that_of_cold_does() -> None:
    small, large = at(16 * MIB), at(4 * GIB)
    assert warm(large).downtime_s < warm(small).downtime_s + 0.2
    assert cold(large).downtime_s > cold(small).downtime_s + 4.0


def test_a_working_set_that_is_written_again_and_again_is_sent_once_in_the_window() -> None:
    hot = Curve(((0.02, 10.0 * MIB), (3.0, 10.0 * MIB)))
    found = warm(at(GIB, hot))
    assert found.frozen == 10 * MIB


def test_what_rounds_cannot_carry_stands_in_the_window_with_its_cost() -> None:
    left = (Leftover(SYSTEM_V, 900_000_000), Leftover(HUGE, 90_000_000))
    found = warm(at(16 * MIB, left=left))
    cost = {part.what: part.seconds for part in found.window}
    assert cost[SYSTEM_V] == pytest.approx(900e6 / 600e6)
    assert cost[HUGE] == pytest.approx(90e6 / 600e6)
    assert found.downtime_s >= 1.65
    assert found.frozen == 990_000_000
    assert cold(at(16 * MIB, left=left)).frozen == 990_000_000 + 16 * MIB
    # CRIU takes ranges one by one: the same bytes cost more where each page lies by itself.
    scattered = (Leftover(SYSTEM_V, 900_000_000, 220_000), Leftover(HUGE, 90_000_000, 1))
    assert warm(at(16 * MIB, left=scattered)).downtime_s > found.downtime_s + 1


def test_what_was_written_to_files_mappings_is_copied_in_rounds_and_put_in_place() -> None:
    here = at(16 * MIB, left=(Leftover(FILES, 256 * MIB, 65536),))
    found = warm(here)
    assert found.frozen == 0 and found.size == 272 * MIB
    assert found.downtime_s - warm(at(16 * MIB)).downtime_s == pytest.approx(256 * MIB / PLACING)
    # Where nobody copies them CRIU takes them, range by range.
    for mode in (cold, lazy):
        assert mode(here).frozen >= 256 * MIB
        assert mode(here).downtime_s > found.downtime_s + 1


def test_each_kind_of_mapping_has_its_name() -> None:
    def vma(permissions: str, name: str, inode: int = 5) -> Vma:
        return Vma(0x1000, 0x2000, permissions, 0, "00:01", inode, name)

    assert kind_of(vma("rw-p", "/anon_hugepage (deleted)"), []) == HUGE
    assert kind_of(vma("rw-p", "/lib/x.so"), [(0x1000, 0x2000)]) == FILES
    assert kind_of(vma("r--p", "/lib/x.so"), []) == READ_ONLY
    assert kind_of(vma("rw-p", "[stack]", 0), []) == STACKS
    assert kind_of(vma("rw-p", "[heap]", 0), []) == LOCKED
    copied = [vma("rw-p", name).copied for name in ("/lib/x.so", "/data (deleted)")]
    others = [vma("rw-p", name).copied for name in ("/memfd:x", "/anon_hugepage", "/dev/zero")]
    others += [vma("r--p", "/lib/x.so").copied, vma("rw-s", "/lib/x.so").copied]
    assert all(copied) and not any(others)


def test_shared_memory_is_copied_in_rounds_and_costs_a_look_and_what_was_written_last() -> None:
    quiet = at(16 * MIB, left=(Leftover(SHARED, GIB), Leftover(MEMFD, GIB)))
    found = warm(quiet)
    assert found.frozen == 0 and found.size == 16 * MIB + 2 * GIB
    assert found.downtime_s - warm(at(16 * MIB)).downtime_s == pytest.approx(2 * GIB / LOOKING)
    assert cold(quiet).frozen == 16 * MIB + 2 * GIB
    busy = replace(quiet, observed=replace(quiet.observed, shared_rate=10.0 * MIB))
    assert 1 * MIB < warm(busy).frozen < 10 * MIB
    busier = replace(quiet, observed=replace(quiet.observed, shared_rate=1e15))
    assert warm(busier).frozen == 2 * GIB


@pytest.mark.parametrize(
    ("more", "warm_why", "cold_why"),
    [
        ({"not_warm": "no userfaultfd"}, "no userfaultfd", ""),
        ({"against": "io_uring: process 7"}, "io_uring: process 7", "io_uring: process 7"),
    ],
)
def test_a_mode_that_is_not_possible_says_why(
    more: dict[str, str], warm_why: str, cold_why: str
) -> None:
    found = make(at(**more))  # type: ignore[arg-type]
    # Lazy is made of the same parts as warm.
    assert [one.why for one in found.predictions] == [warm_why, cold_why, warm_why, warm_why]
    assert [one.possible for one in found.predictions] == [False, not cold_why, False, False]
    assert (found.chosen.mode if found.chosen else None) == (None if cold_why else "cold")


def test_rather_stay_than_stand_still_for_long_is_foreseen() -> None:
    limits = Limits(must_converge=True)
    found = warm(at(GIB, writes(4 * GIB, GIB), limits=limits))
    assert not found.possible
    assert "as fast as it is sent" in found.why
    # And what is not possible warm is not done cold instead.
    assert make(at(GIB, writes(4 * GIB, GIB), limits=limits)).chosen is None
    assert make(at(GIB, writes(4 * GIB, GIB))).chosen is not None


def test_processes_that_cannot_be_tracked_are_named() -> None:
    here = at()
    seen = replace(here.observed, untracked=("process 7: 32-bit code",))
    assert "process 7: 32-bit code" in warm(replace(here, observed=seen)).notes[0]


def test_lazy_stands_still_for_a_part_of_what_cold_does_and_says_its_risk() -> None:
    found = lazy(at(4 * GIB))
    assert found.downtime_s < cold(at(4 * GIB)).downtime_s / 3
    assert found.frozen == 0 and found.size == 4 * GIB
    assert found.total_s > 4 * GIB / FAST.pace
    assert "needs both hosts" in found.notes[-1]


@pytest.mark.parametrize(
    ("per_second", "least", "most"),
    [
        (0, 0, 0),
        (40 * MIB, 70 * MIB, 110 * MIB),  # for as long as the round takes, and a little more
        (4 * GIB, GIB, GIB),  # never more than there is
    ],
)
def test_what_is_written_during_the_one_round_of_a_pre_copy_follows(
    per_second: int, least: int, most: int
) -> None:
    here = at(GIB, writes(per_second, GIB))
    found, plain = lazy_pre_copy(here), lazy(here)
    assert found.possible and [one.size for one in found.rounds] == [GIB]
    assert least <= found.follows <= most and found.size == GIB + found.follows
    assert found.follows_s == pytest.approx(found.follows / FAST.pace)
    assert plain.follows == GIB and not plain.rounds
    assert found.follows_s <= plain.follows_s and found.downtime_s <= plain.downtime_s
    # It begins later by one round, for which both hosts aren't needed.
    assert found.total_s > found.rounds[0].seconds + found.follows_s
    assert "needs both hosts" in found.notes[-1]
    told = found.to_dict()
    assert told["pre_copy"] and told["bytes"]["follows"] == found.follows


@pytest.mark.parametrize("wish", ["auto", "warm", "cold", "lazy", "lazy --pre-copy"])
def test_the_mode_that_was_asked_for_is_the_one_that_counts(wish: str) -> None:
    found = make(at(), wish)
    assert found.chosen is not None
    assert found.chosen.name == ("warm" if wish == "auto" else wish)
    told = found.to_dict()
    assert told["mode"] == found.chosen.mode
    assert told["downtime_ms"] == round(found.chosen.downtime_s * 1e3)
    assert [one.name for one in found.predictions] == list(MODES)
    assert told["pre_copy"] == (wish == "lazy --pre-copy")


@pytest.mark.parametrize(
    ("bandwidth", "sample", "pace", "share"),
    [
        (100e6, Sample(0.0, 1.0, 1e9), 100e6, 1.0),
        (100e6, Sample(0.0, 4.0, 1e9), 400e6, 0.25),  # packed: four times as much memory
        (100e6, Sample(0.5, 1.0, 1e9), 200e6, 0.5),  # zeros never travel
        (10e9, Sample(0.0, 4.0, 1e9), forecast.PACE, 1.0),  # the lane is faster than packing
        (100e6, Sample(1.0, 1.0, 1e9), forecast.PACE, 0.0),
    ],
)
def test_an_assumed_way_packs_where_that_pays(
    bandwidth: float, sample: Sample, pace: float, share: float
) -> None:
    found = assumed(bandwidth, replace(at().observed, sample=sample))
    assert found.pace == pytest.approx(pace)
    assert found.share == pytest.approx(share)
    assert "assumed" in found.basis


def test_a_bandwidth_limits_the_lane_not_what_is_packed() -> None:
    way = Way(rate=600e6, pace=500e6, share=0.25)
    assert way.limited(50e6).pace == 200e6
    assert way.limited(1e9).pace == 500e6


def test_a_slower_lane_never_makes_anything_better() -> None:
    last = 0.0
    for rate in (1e9, 300e6, 100e6, 30e6, 10e6):
        one = at(GIB, writes(5 * MIB, 64 * MIB), way=Way(rate, rate))
        total = warm(one).total_s
        assert total > last
        last = total
