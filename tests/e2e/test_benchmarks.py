"""The benchmarks run and say what they are to say; what they measure is not looked at here."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from benchmarks import downtime, forecast, frozen, service, throughput, total, tracking
from tests import needs

pytestmark = [needs.root, needs.criu, needs.compiler, needs.sshd, needs.kernel("6.7")]


Run = Callable[[ModuleType, str], Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a benchmark with these words; what its last line says."""

    def once(benchmark: ModuleType, words: str) -> Any:
        benchmark.main([*words.split(), "--runs", "1", "--json"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return once


def test_downtime_beside_its_floor_and_its_parts(run: Run) -> None:
    (found,) = run(downtime, "--sizes 8 --moves 1 --moves-mib 8 --modes warm --no-feed --peers=")
    assert (found["mode"], found["sizes_mib"], found["peers_ms"]) == ("warm", [8], {})
    assert found["floor_ms"] > 0
    assert found["downtime_ms"][0] > 0 and found["pipeline_ms"][0] > 0
    assert found["distribution"]["all_ms"] == [found["distribution"]["median_ms"]]


def test_the_frozen_window_has_lines_of_both_sides(run: Run) -> None:
    found = run(frozen, "--mib 8")
    assert {mark["side"] for mark in found["landmarks"]} == {"source", "there"}
    assert any(mark["what"] == "criu: everything is dumped" for mark in found["landmarks"])
    assert all(0 < step["ms"] <= found["shown_ms"] + 20 for step in found["steps"])


def test_total_time_and_memory(run: Run) -> None:
    (found,) = run(total, "--sizes 8 --modes cold --no-feed")
    assert found["ratio"] > 0
    assert {"migrate", "agent", "monitor"} <= set(found["peak_mib"])


def test_throughput_of_a_lane(run: Run) -> None:
    found = run(throughput, "--mib 4 --lanes tls")
    rows = {(row["lane"], row["memory"]): row["mb_per_s"] for row in found["lanes"]}
    assert len(rows) == 7 and all(rows.values())


@needs.tool("redis-server", "redis-benchmark")
def test_tracking_and_what_redis_loses(run: Run) -> None:
    found = run(tracking, "--mib 4 --seconds 0.3 --every 0.1")
    found = {row["tracker"]: row for row in found["trackers"]}
    assert found["wp-async"]["stop_ms"] > 0
    assert all(row["during"] > 0 and row["scan_ms"] > 0 for row in found.values())


def test_a_forecast_beside_what_came(run: Run) -> None:
    for found in run(forecast, "--sizes 8 --per-ms 1 --modes warm,lazy+pre-copy --seconds 0.5"):
        assert found["said"]["downtime_ms"] > 0 and found["came"]["downtime_ms"] > 0
        assert found["ratio"]["sent_mib"] > 0
        assert (found["came"]["follows_mib"] > 0) == (found["mode"] != "warm")


@needs.tool("redis-server")
def test_clients_of_a_service(run: Run) -> None:
    (found,) = run(service, "--services redis --rate 100 --mib 1 --pause 0.2")
    assert found["during"]["requests"] > 0 and found["longest_ms"] > 0
