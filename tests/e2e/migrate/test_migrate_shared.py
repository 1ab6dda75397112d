"""Memory that processes share travels while they run, and every page of it is checked afterwards, by who wrote it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.e2e.migrate.world import World, eventually
from tests.lab.lab import Host

pytestmark = [needs.root, needs.criu, needs.compiler]

MIB = 64
SOURCE = Path(__file__).with_name("sharer.c")
_VERDICT = re.compile(r"verdict (\d+) wrong (\d+) of (\d+)")


class Sharer:
    """A container of several processes that write to what they share, and know what each page must be."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self._asked = 0
        program = folder / "bin" / "sharer"
        program.parent.mkdir(parents=True)
        argv = ["cc", "-O2", "-static", "-Wall", "-Werror", "-o", str(program), str(SOURCE)]
        subprocess.run(argv, check=True)
        self._rootfs = folder

    def start(self, mib: int = MIB, writers: int = 3, pages_per_ms: int = 2) -> None:
        self.world.a.ckpt(
            "run", "-d", "--name", "w", "--network", "none", str(self._rootfs), "--",
            "/bin/sharer", str(mib), str(writers), str(pages_per_ms),
        )  # fmt: skip
        eventually("it is ready", lambda: "ready" in self.world.a.ckpt("logs", "w"))

    def wrong_pages(self, host: Host) -> int:
        self._asked += 1
        host.ckpt("kill", "-s", "USR1", "w")
        found = eventually(
            "each has looked",
            lambda: [
                one
                for one in _VERDICT.findall(host.ckpt("logs", "w"))
                if int(one[0]) == self._asked
            ],
        )
        assert int(found[0][2]) > MIB * 256
        return int(found[0][1])


@pytest.fixture
def sharer(world: World, tmp_path: Path) -> Iterator[Sharer]:
    tmp_path.chmod(0o755)
    yield Sharer(world, tmp_path / "sharer")


def moved(world: World, source: Host) -> dict[str, Any]:
    done = world.migrate("--mode", "warm", "--json", source=source)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_shared_memory_moves_while_it_is_written_there_and_back(
    world: World, sharer: Sharer
) -> None:
    sharer.start()
    assert sharer.wrong_pages(world.a) == 0
    for source, target in ((world.a, world.b), (world.b, world.a), (world.a, world.b)):
        found = moved(world, source)
        assert found["mode"] == "warm"
        # The frozen window has only what was written last.
        assert found["bytes"]["images"] < 4 << 20
        assert found["bytes"]["memory_frozen"] < MIB << 19
        assert sharer.wrong_pages(target) == 0
    # What they share is the container's memory there, not that of who brought it.
    (stats,) = world.b.ckpt("stats", "w", json_output=True)
    assert stats["memory"]["usage"] > MIB << 20
    world.b.ckpt("dump", "w", "--as", "after")
    world.b.ckpt("rm", "w")
    world.b.ckpt("restore", "after")
    world.b.ckpt("checkpoints", "rm", "after")
    assert sharer.wrong_pages(world.b) == 0


def test_killed_while_shared_memory_travels_it_runs_on_at_the_source(
    world: World, sharer: Sharer
) -> None:
    sharer.start()
    process = world.begin("--mode", "warm", env=world.stop_at("dump", "kill"))
    assert process.wait(60) != 0
    world.nothing_at(world.b)
    assert sharer.wrong_pages(world.a) == 0
