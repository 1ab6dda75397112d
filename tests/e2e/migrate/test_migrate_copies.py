"""What a program writes to private mappings of files travels while it runs; every page is checked by the program."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt.ops.forecast import PLACED
from ckpt.ops.leftover import FILES, SYSTEM_V
from runtime.tracking import choose
from tests import needs
from tests.e2e.migrate.world import World, eventually
from tests.lab.lab import Host
from tests.unit.ckpt.test_report_page import Page

pytestmark = [needs.root, needs.criu, needs.compiler]

FILE, SEGMENT = 64, 4
"""MiB; half of each is written."""
SOURCE = Path(__file__).with_name("keeper.c")
_VERDICT = re.compile(r"verdict (\d+) wrong (\d+) of (\d+)")


class Keeper:
    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self._rootfs = folder
        self._asked = 0
        program = folder / "bin" / "keeper"
        program.parent.mkdir(parents=True)
        (folder / "tmp").mkdir()
        argv = ["cc", "-O2", "-static", "-Wall", "-Werror", "-o", str(program), str(SOURCE)]
        subprocess.run(argv, check=True)

    def start(self, pages_per_ms: int = 4, run: int = 1) -> None:
        self.world.a.ckpt(
            "run", "-d", "--name", "w", "--network", "none", str(self._rootfs), "--",
            "/bin/keeper", str(FILE), str(SEGMENT), str(pages_per_ms), str(run),
        )  # fmt: skip
        eventually("it is ready", lambda: "ready" in self.world.a.ckpt("logs", "w"))

    def wrong_pages(self, host: Host) -> int:
        self._asked += 1
        host.ckpt("kill", "-s", "USR1", "w")
        found = eventually(
            "it has looked", lambda: _VERDICT.findall(host.ckpt("logs", "w"))[self._asked - 1 :]
        )
        assert int(found[0][2]) == (FILE + SEGMENT // 2) * 256
        return int(found[0][1])


@pytest.fixture
def keeper(world: World, tmp_path: Path) -> Iterator[Keeper]:
    tmp_path.chmod(0o755)
    yield Keeper(world, tmp_path / "keeper")


def moved(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_written_pages_of_files_move_while_they_are_written(
    world: World, keeper: Keeper, tmp_path: Path
) -> None:
    keeper.start()
    assert keeper.wrong_pages(world.a) == 0
    told = world.a.ckpt("forecast", "w", "b", "--seconds", "0.5", json_output=True)
    warm, cold, *_ = told["modes"]
    parts = {part["what"]: part for part in warm["window"]}
    assert parts[SYSTEM_V]["bytes"] == SEGMENT << 19 and parts[SYSTEM_V]["ms"] > 2
    assert FILE << 18 < parts[PLACED]["bytes"] <= FILE << 19 and parts[PLACED]["ms"] > 20
    assert warm["downtime_ms"] >= parts[SYSTEM_V]["ms"] + parts[PLACED]["ms"]
    assert cold["bytes"]["frozen"] > FILE << 18
    shown = world.a.ckpt("forecast", "w", "--seconds", "0.5")
    assert SYSTEM_V in shown and PLACED in shown
    page = tmp_path / "page.html"
    for source, target, env in (
        (world.a, world.b, {}),
        (world.b, world.a, {choose.VARIABLE: "compare"}),
    ):
        words = ("--mode", "warm", "--json", "--report", str(page))
        found = moved(world.migrate(*words, source=source, env=env))
        assert found["mode"] == "warm"
        assert found["rounds"][0]["bytes"] >= FILE << 18
        # The frozen window has what was written last, and the segment, which only CRIU carries.
        assert found["bytes"]["memory_frozen"] < FILE << 18
        assert SEGMENT << 19 <= found["bytes"]["images"] < (SEGMENT << 19) + (2 << 20)
        kinds = found["images_by_kind"]
        assert kinds[SYSTEM_V] == SEGMENT << 19 and FILES not in kinds
        assert 0 < sum(kinds.values()) <= found["bytes"]["images"]
        assert SYSTEM_V in Page(page.read_text()).text
        assert keeper.wrong_pages(target) == 0
