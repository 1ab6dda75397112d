"""Warm moves: memory travels while the container runs, and every byte of it is checked afterwards."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.workload import Ticks, build
from runtime.tracking import choose
from tests import needs
from tests.e2e.migrate.world import World, eventually
from tests.hosts_own import unprivileged_userfaultfd
from tests.lab.lab import Host

pytestmark = [needs.root, needs.criu, needs.compiler]


class Load:
    """A container whose memory is all the time rewritten, and that can say whether each page is right."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        volume = folder / "ticks"
        volume.mkdir(parents=True)
        volume.chmod(0o777)
        self.ticks = Ticks(volume / "t")
        self._rootfs = build(folder)
        self._volume = volume

    def start(self, mib: int, pages_per_ms: int) -> None:
        self.world.a.ckpt(
            "run", "-d", "--name", "w", "--network", "none", "-v", f"{self._volume}:/ticks",
            str(self._rootfs), "--", "/bin/load", str(mib), "/ticks/t", str(pages_per_ms),
        )  # fmt: skip
        self.ticks.wait_ready()

    def wrong_pages(self, host: Host) -> int:
        host.ckpt("kill", "-s", "USR1", "w")
        return self.ticks.verdict()

    def ticks_on(self) -> None:
        before = len(self.ticks.values())
        eventually("it ticks", lambda: len(self.ticks.values()) > before + 5)


@pytest.fixture
def load(world: World, tmp_path: Path) -> Iterator[Load]:
    tmp_path.chmod(0o755)
    yield Load(world, tmp_path / "load")


def report(done: subprocess.CompletedProcess[str]) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads(done.stdout.splitlines()[-1])  # type: ignore[type-arg]
    return found


def test_a_program_that_writes_all_the_time_moves_there_and_back(world: World, load: Load) -> None:
    """There with what this host has to find written pages, and back with what every host has."""
    load.start(48, 4)
    for source, env, name in (
        (world.a, {}, choose.best().name),
        (world.b, {choose.VARIABLE: "compare"}, "compare"),
    ):
        found = report(world.migrate("--mode", "warm", "--json", source=source, env=env))
        assert found["mode"] == "warm" and found["tracker"] == name
        assert found["rounds"][0]["bytes"] >= 48 << 20
        assert found["rounds"][-1]["bytes"] < 24 << 20
        assert found["bytes"]["memory"] >= 40 << 20
        # What travels in the frozen window is a part of the memory, not all of it.
        assert found["bytes"]["memory_frozen"] < 24 << 20
        assert found["bytes"]["images"] < 8 << 20
    load.ticks_on()
    assert load.wrong_pages(world.a) == 0


def test_a_move_right_after_a_move_waits_for_the_memory_of_the_first(
    world: World, load: Load
) -> None:
    load.start(256, 4)
    world.migrate("--mode", "warm")
    # Most of its memory isn't in place yet, and could be neither tracked nor counted.
    found = report(world.migrate("--mode", "warm", "--json", source=world.b))
    assert found["rounds"][0]["bytes"] >= 256 << 20
    assert found["bytes"]["memory_frozen"] < 64 << 20
    load.ticks_on()
    assert load.wrong_pages(world.a) == 0


def test_the_measured_downtime_is_the_program_s_own(world: World, load: Load) -> None:
    load.start(16, 1)
    since = time.time_ns()
    found = report(world.migrate("--mode", "warm", "--json"))
    load.ticks_on()
    gap = load.ticks.gap_ms(since)
    # The window begins a little before the first task stands, and a tick may have come a millisecond before that.
    assert gap - 30 < found["downtime_ms"] < gap + 100


def test_auto_is_warm_where_both_hosts_can(world: World) -> None:
    world.run("-m", "8")
    found = report(world.migrate("--json"))
    assert (found["mode"], found["mode_why"]) == ("warm", "")


def test_a_program_that_writes_too_fast_stays_if_it_must_converge(world: World, load: Load) -> None:
    load.start(48, 40)
    done = world.migrate(
        "--mode", "warm", "--bandwidth", "20m", "--max-downtime", "1", "--abort-if-not-converging",
        check=False,
    )  # fmt: skip
    assert done.returncode == 13, done.stderr
    assert "writes as fast as it is sent" in done.stderr or "rounds were not enough" in done.stderr
    assert world.state(world.a) == "running"
    world.nothing_at(world.b)
    load.ticks_on()
    assert load.wrong_pages(world.a) == 0


@pytest.mark.parametrize("point", ["sync", "dump"])
def test_killed_while_memory_travels_it_runs_on_at_the_source(
    world: World, load: Load, point: str
) -> None:
    load.start(32, 4)
    process = world.begin("--mode", "warm", env=world.stop_at(point, "kill"))
    assert process.wait(60) != 0
    world.nothing_at(world.b)
    load.ticks_on()
    assert load.wrong_pages(world.a) == 0
    # The killed one's journal is no obstacle: it moves at the next try.
    eventually(
        "the next try succeeds",
        lambda: world.migrate("--mode", "warm", check=False).returncode == 0,
    )
    load.ticks_on()


def test_the_host_allows_userfaultfd_only_as_long_as_it_is_needed(world: World) -> None:
    before = unprivileged_userfaultfd()
    world.run("-m", "8")
    world.migrate("--mode", "warm")
    assert unprivileged_userfaultfd() == before


def test_a_container_that_came_warm_can_be_dumped_at_once(world: World, load: Load) -> None:
    load.start(32, 2)
    world.migrate("--mode", "warm")
    world.b.ckpt("dump", "w", "--as", "after")
    world.b.ckpt("rm", "w")
    world.b.ckpt("restore", "after")
    load.ticks_on()
    assert load.wrong_pages(world.b) == 0
    world.b.ckpt("checkpoints", "rm", "after")
