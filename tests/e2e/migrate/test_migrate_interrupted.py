"""A migration's processes are killed, at every step of the exchange: exactly one copy goes on, by itself.

Nobody helps: what a killed `ckpt migrate` leaves is healed by the container's monitor, what a killed agent leaves by
the source, which sends another one. The client's one TCP connection and the program's own counter prove that it is the
same container, unharmed.
"""

from __future__ import annotations

import signal

import pytest

from tests import needs
from tests.e2e.migrate.world import World

pytestmark = needs.MIGRATION


@pytest.fixture(autouse=True)
def cold(world: World) -> None:
    world.words = ("--mode", "cold")


SOURCE_BEFORE = (
    "check",
    "sync",
    "journal-frozen",
    "dump",
    "freeze-done",
    "journal-received",
)
SOURCE_AFTER = ("journal-committed", "bury-done", "journal-running", "clean-done")
DESTINATION_BEFORE = (
    "check",
    "receive",
    "journal-receiving",
    "begun",
    "brace",
    "verify",
    "prepare",
    "prepare-done",
    "journal-prepared",
)
DESTINATION_AFTER = ("journal-committed", "release-done", "journal-running")


@pytest.mark.parametrize("point", SOURCE_BEFORE)
def test_killed_at_the_source_before_commit_it_runs_on_there(world: World, point: str) -> None:
    world.run("-m", "8")
    client = world.connect()
    process = world.begin(env=world.stop_at(point, "kill"))
    assert process.wait(60) == -signal.SIGKILL
    client.beat()
    world.nothing_at(world.b)
    world.runs_at(world.a, client)
    assert world.migrate("--json").returncode == 0
    world.runs_at(world.b, client)


@pytest.mark.parametrize("point", SOURCE_AFTER)
def test_killed_at_the_source_after_commit_it_runs_at_the_destination(
    world: World, point: str
) -> None:
    world.run("-m", "8")
    client = world.connect()
    process = world.begin(env=world.stop_at(point, "kill"))
    assert process.wait(60) == -signal.SIGKILL
    world.runs_at(world.b, client)
    world.nothing_at(world.a)


@pytest.mark.parametrize("point", DESTINATION_BEFORE)
def test_an_agent_killed_before_commit_leaves_nothing_and_the_source_runs_on(
    world: World, point: str
) -> None:
    world.run("-m", "8")
    client = world.connect()
    done = world.migrate(check=False, env=world.stop_at(point, "kill", there=True))
    assert done.returncode != 0
    assert "ckpt: " in done.stderr
    client.beat()
    world.nothing_at(world.b)
    world.runs_at(world.a, client)


@pytest.mark.parametrize("point", DESTINATION_AFTER)
def test_an_agent_killed_after_commit_is_replaced_and_it_runs_there(
    world: World, point: str
) -> None:
    world.run("-m", "8")
    client = world.connect()
    done = world.migrate(check=False, env=world.stop_at(point, "kill", there=True))
    assert done.returncode == 0, done.stderr
    world.runs_at(world.b, client)
    world.nothing_at(world.a)
