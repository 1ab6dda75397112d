"""Lazy moves: it runs there at once, and its memory follows. Every page is checked, whatever happens meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.paths import HostPaths
from tests import needs
from tests.e2e.migrate.test_migrate_failures import agents, quick, recovered
from tests.e2e.migrate.test_migrate_warm import Load, load, report
from tests.e2e.migrate.world import World, eventually, kill
from tests.lab.lab import Host
from tests.patience import patient

__all__ = ["load"]  # a fixture
pytestmark = [needs.root, needs.criu, needs.compiler]


@pytest.fixture(autouse=True)
def lazy(world: World) -> None:
    world.words = ("--mode", "lazy")


def test_it_runs_there_at_once_and_its_memory_follows(world: World, load: Load) -> None:
    load.start(48, 4)
    # Back with a round before: only what was written since is fetched.
    for source, words in ((world.a, ()), (world.b, ("--pre-copy",))):
        found = report(world.migrate("--json", *words, source=source))
        assert found["mode"] == "lazy"
        assert [one["bytes"] >= 48 << 20 for one in found["rounds"]] == [True] * len(words)
        assert (found["lazy"]["bytes"] >= 48 << 20) == (not words)
        assert found["lazy"]["whole_ms"] >= 0 and not found["lazy"]["lost"]
        # Not a page of it travels in the frozen window.
        assert found["bytes"]["images"] < 8 << 20 and found["bytes"]["memory_frozen"] == 0
    load.ticks_on()
    assert load.wrong_pages(world.a) == 0
    world.nothing_at(world.b)


def held_back(world: World) -> None:
    """From now on memory comes slowly: there is time to break something."""
    world.lab.limit("b", "16mbit")


def fetching(world: World) -> None:
    """It runs on b, and pages are missing."""
    eventually("it runs on b", lambda: world.state(world.b) == "running")
    assert world.journal(world.b)["state"] == "committed"


def test_a_link_that_breaks_makes_it_wait_and_its_client_too(world: World) -> None:
    """Both ends go on by themselves when it is back; the source stands frozen until then."""
    world.run("-m", "24")
    client = world.connect()
    held_back(world)
    process = world.begin("--json", env=quick(world))
    fetching(world)
    client.beat()
    world.lab.link_down("b")
    refused = world.b.run(["ckpt", "dump", "w"], check=False)
    assert refused.returncode == 11 and "its memory is still at" in refused.stderr
    assert "part of its memory is still at" in world.b.ckpt("recover")
    eventually("the agent has given up", lambda: not agents(world, world.b))
    assert world.journal(world.a)["state"] == "committed"
    world.lab.link_up("b")
    world.lab.limit("b", None)
    output, errors = process.communicate(timeout=patient(100))
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["lazy"]["bytes"] >= 24 << 20
    world.runs_at(world.b, client)
    world.nothing_at(world.a)


@pytest.mark.parametrize("victim", ["agent", "command"])
def test_a_process_that_is_killed_meanwhile_is_replaced(
    world: World, load: Load, victim: str
) -> None:
    load.start(24, 1)
    held_back(world)
    process = world.begin()
    fetching(world)
    if victim == "agent":
        for word in agents(world, world.b):
            kill(int(word.split()[0]))
    else:
        process.kill()
    world.lab.limit("b", None)
    _, errors = process.communicate(timeout=patient(100))
    assert (process.returncode == 0) == (victim == "agent"), errors
    world.nothing_at(world.a)
    assert world.state(world.b) == "running"
    load.ticks_on()
    assert load.wrong_pages(world.b) == 0


def test_processes_killed_at_the_source_lose_it_by_name_and_there_is_no_other_copy(
    world: World,
) -> None:
    world.run("-m", "24")
    held_back(world)
    process = world.begin()
    fetching(world)
    for pid in tasks(world.a):
        kill(pid)
    world.lab.limit("b", None)
    _, errors = process.communicate(timeout=patient(100))
    assert process.returncode == 1
    assert "container w: it is lost, killed at b" in errors, errors
    world.nothing_at(world.a)
    eventually("it is dead", lambda: world.state(world.b) == "stopped")
    assert "container w is lost, it was killed" in world.b.ckpt("recover")
    assert "is lost" not in world.b.ckpt("recover")  # told once
    world.b.ckpt("start", "w")  # its files are there
    world.b.ckpt("rm", "-f", "w")


@pytest.mark.parametrize("assume", ["aborted", "committed"])
def test_only_a_person_goes_back_to_the_source_s_copy(world: World, assume: str) -> None:
    """The destination lost it in the middle; the source has the memory of the moment when it moved."""
    world.run("-m", "24")
    held_back(world)
    stop = world.stop_at("heal", "fail")
    process = world.begin(env={**stop, **quick(world)})
    fetching(world)
    world.lab.link_down("b")
    process.kill()
    process.wait()
    world.reached("heal")
    for word in world.processes(world.b):
        kill(int(word.split()[0]))
    eventually("its monitor is gone", lambda: world.state(world.b) == "lost")
    assert "ended here before all of its memory had come" in world.b.ckpt("recover")
    world.lab.limit("b", None)
    world.lab.link_up("b")
    # While the destination knows of it, it is not given back.
    assert "refused: b is there" in recovered(world, world.a, words=("--assume", "aborted"))
    assert world.state(world.a) == "running" and frozen(world.a)
    # The agent that was asked just now may not have ended.
    assert "given up: nothing" in recovered(world, world.b, words=("--assume", "aborted"))
    world.nothing_at(world.b)
    said = recovered(world, world.a, words=("--assume", assume))
    if assume == "committed":
        assert "given up: it was at" in said
        world.nothing_at(world.a)
        return
    assert "it runs here, from the moment when it moved" in said
    world.runs_at(world.a)
    assert not frozen(world.a)
    world.connect()
    world.nothing_at(world.b)


def test_the_risk_is_said_before_it_begins(world: World) -> None:
    world.run("-m", "4")
    assert "goes down" in world.migrate("--dry-run").stdout
    assert "goes down" in world.migrate().stderr


def tasks(host: Host) -> list[int]:
    """The container's processes, but for its init."""
    found = []
    for path in cgroup_files(host, "cgroup.procs"):
        found += [int(word) for word in path.read_text().split()]
    return sorted(set(found))


def frozen(host: Host) -> bool:
    return any(path.read_text().strip() == "1" for path in cgroup_files(host, "cgroup.freeze"))


def cgroup_files(host: Host, name: str) -> list[Path]:
    tag = HostPaths.of(str(host.root)).tag
    base = Path("/sys/fs/cgroup")
    parents = [*base.glob(f"ckpt*/{tag}"), *base.glob(f"*/ckpt*/{tag}")]
    return [file for parent in parents for file in parent.glob(f"*/{name}")]
