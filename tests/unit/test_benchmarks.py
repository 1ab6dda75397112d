"""What the benchmarks compute from what they measured."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks import downtime, service
from benchmarks.criu_log import Line, lines, pauses
from benchmarks.results import Spread, ratio
from benchmarks.workload import Ticks


def test_the_95th_percentile_of_20_is_the_19th() -> None:
    spread = Spread.of([float(n) for n in range(20, 0, -1)])
    assert spread.percentile(0.95) == 19
    assert (spread.low, spread.median, spread.high) == (1, 10.5, 20)


def test_what_was_not_measured_is_nothing() -> None:
    assert (Spread.of([]).median, Spread.of([]).percentile(0.5)) == (None, None)
    assert ratio(None, 3.0) is None and ratio(3.0, None) is None and ratio(3.0, 0.0) is None


def test_the_gap_is_the_largest_step_after_the_moment(tmp_path: Path) -> None:
    stamps = [0, 10, 500, 510, 590, 600]
    (tmp_path / "t").write_bytes(struct.pack("=6q", *stamps) + b"half")
    ticks = Ticks(tmp_path / "t")
    assert ticks.gap(1) == (10, 500)
    assert ticks.gap(499) == (510, 590)
    assert ticks.gap(600) == (0, 0)


def test_a_verdict_is_a_number_of_pages(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(struct.pack("=3q", 0, 10, -8))
    assert Ticks(tmp_path / "t").verdict(1) == 7


def test_lines_of_a_log_get_the_time_of_the_quickest_look() -> None:
    # CRIU started at 1000 ms; the second look was late, and a line came in two pieces.
    seen = [
        (1_010_500_000, b"(00.010000) one\n(00.010"),
        (1_019_000_000, b"400) two\nno time\n(00.011000) three\n"),
    ]
    assert [(line.at_ns, line.text) for line in lines(seen)] == [
        (1_010_500_000, "one"),
        (1_010_900_000, "two"),
        (1_011_500_000, "three"),
    ]


def test_the_longest_pauses_lie_within_the_window() -> None:
    log = [Line(at, str(at)) for at in (0, 50, 60, 90, 95, 200)]
    found = pauses(log, 50, 100, 2)
    assert [(a.at_ns, b.at_ns) for a, b in found] == [(60, 90), (50, 60)]


def test_requests_belong_to_the_window_of_their_moment() -> None:
    requests = [(5, 1_000_000), (15, 9_000_000), (25, 2_000_000), (35, 7_000_000)]
    found = service.parts(requests, [(10, 20), (30, 40)])
    assert [found[part]["requests"] for part in ("before", "during", "after")] == [1, 2, 1]
    assert found["during"]["max_ms"] == 9 and found["during"]["p50_ms"] == 7
    assert service.longest(requests, (30, 40)) == 7


def test_the_options_of_downtime(capsys: pytest.CaptureFixture[str]) -> None:
    found = downtime.options_of(["--sizes", "256,16", "--peers", ""])
    assert (found.sizes, found.peers, found.modes) == ([16, 256], [], None)
    with pytest.raises(SystemExit):
        downtime.options_of(["--peers", "docker"])
    assert "docker" in capsys.readouterr().err
