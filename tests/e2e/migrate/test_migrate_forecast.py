"""What a forecast says before, and what a report's page says afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runtime.tracking import choose
from tests import needs
from tests.e2e.migrate.test_migrate_warm import Load
from tests.e2e.migrate.world import World
from tests.unit.ckpt.test_report_page import Page

pytestmark = [needs.root, needs.criu, needs.compiler]


def tasks(world: World) -> dict[int, tuple[str, list[str]]]:
    """The container's processes: their state and tracer, and what they have open."""
    (status,) = world.a.root.glob("containers/*/status.json")
    init = json.loads(status.read_text())["init_pid"]
    children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    found = {}
    for pid in [init, *map(int, children)]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kept = [
            line for line in lines if line.startswith(("TracerPid", "SigBlk", "NSpid", "Seccomp"))
        ]
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        found[pid] = "\n".join(kept), sorted(links)
    return found


def test_a_forecast_comes_true_and_leaves_everything_as_it_was(
    world: World, tmp_path: Path
) -> None:
    load = Load(world, tmp_path / "load")
    tmp_path.chmod(0o755)
    load.start(48, 4)
    before = tasks(world)
    alone = world.a.ckpt("forecast", "w", "--seconds", "1", "--bandwidth", "50m", json_output=True)
    found = world.a.ckpt("forecast", "w", "b", "--seconds", "1", json_output=True)
    text = world.a.ckpt("migrate", "w", "b", "--dry-run", "--mode", "lazy", "--pre-copy")
    assert tasks(world) == before
    world.nothing_at(world.b)
    assert not any(world.a.root.glob("migrations/*"))
    assert "assumed" in alone["basis"]
    for words in ("private file mappings", "lazy --pre-copy (would be used)", "needs both hosts"):
        assert words in text, words

    modes: dict[str, Any] = {one["mode"] + "+pre" * one["pre_copy"]: one for one in found["modes"]}
    before, lazy = modes["lazy+pre"], modes["lazy"]
    assert lazy["bytes"]["follows"] >= 48 << 20 and before["rounds"][0]["bytes"] >= 48 << 20
    assert 0 < before["bytes"]["follows"] <= 50 << 20 and before["follows_ms"] > 0
    assert found["mode"] == "warm" and found["lane"] == "tls"
    assert found["observed"]["tracker"] == choose.best().name
    assert 48 << 20 <= found["observed"]["carried"] < 50 << 20
    # 4 random pages of 12288 each millisecond: 16 MiB/s at first, 48 MiB at last.
    points = {one["seconds"]: one["bytes"] for one in found["observed"]["writing"]}
    longest = max(points)
    assert 5 << 20 < points[longest] <= 49 << 20
    assert alone["modes"][1]["downtime_ms"] > 48 * 2**20 / 50e6 * 1e3
    assert modes["cold"]["bytes"]["frozen"] >= 48 << 20 > modes["warm"]["bytes"]["frozen"]

    page = tmp_path / "moved.html"
    came = json.loads(world.migrate("--mode", "warm", "--json", "--report", str(page)).stdout)
    assert came["outcome"] == "moved"
    said = modes["warm"]
    # Not more than that, on a machine that others use: benchmarks/forecast.py has the figures.
    assert 0.5 < said["bytes"]["sent"] / came["bytes"]["total"] < 2
    assert said["bytes"]["frozen"] < 24 << 20 > came["bytes"]["memory_frozen"]
    text = Page(page.read_text()).text
    for words in ("moved", f"{came['bytes']['total']:,}", "all tasks run", "everything is sent",
                  came["environment"]["destination"]["kernel"], f"{came['window'][-1]['at_ms']:.2f}"):  # fmt: skip
        assert words in text, words
    # The destination's moments are on the source's clock: between the freeze and the end, in their order.
    order = [one["what"] for one in came["window"]]
    assert order.index("CRIU is let go to freeze") < order.index("all pages are here")
    assert order.index("all pages are here") < order.index("all tasks run")
    (running,) = (one["at_ms"] for one in came["window"] if one["what"] == "all tasks run")
    assert abs(running - came["downtime_ms"]) < 0.1
    assert load.wrong_pages(world.b) == 0


def test_a_migration_that_failed_has_a_page_that_says_why(world: World, tmp_path: Path) -> None:
    world.run("-m", "8")
    page = tmp_path / "failed.html"
    done = world.migrate(
        "--report", str(page), "--json", check=False, env=world.stop_at("dump", "fail")
    )
    assert done.returncode != 0
    assert json.loads(done.stderr.splitlines()[-1])["why"] == "a test wants it to fail"
    report = json.loads(done.stdout)
    assert (report["outcome"], report["state"]) == ("stayed", "aborted")
    text = Page(page.read_text()).text
    for words in ("stayed", "a test wants it to fail", "it was given up", "CRIU waits for images"):
        assert words in text, words
    # A place that can't be written to is no reason to find out afterwards.
    refused = world.migrate("--report", str(tmp_path / "none" / "x.html"), check=False)
    assert refused.returncode == 10
    assert world.state(world.a) == "running"
