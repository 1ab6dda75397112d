"""Containers that are in the way of a dump, and how the tests watch them: see snags.c."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.box import Box, until
from tests.needs import find_tool
from tests.patience import patient

SOURCE = Path(__file__).with_name("snags.c")


def with_snags(small_rootfs: Path) -> Path:
    """A copy of the small root file system with the program; made once in a test run."""
    place = small_rootfs.parent / "snags"
    if not place.exists():
        temp = small_rootfs.parent / "snags.new"
        shutil.copytree(small_rootfs, temp, symlinks=True)
        compiler = find_tool("cc") or find_tool("gcc") or "cc"
        words = [compiler, "-static", "-O1", "-o", str(temp / "bin/snags"), str(SOURCE)]
        subprocess.run(words, check=True, timeout=patient(100))
        temp.rename(place)
    return place


def start(box: Box, name: str, *words: object, flags: tuple[object, ...] = ()) -> None:
    """A container that runs `snags WORDS`, and is as it says."""
    box.up(name, *flags, args=("snags", *map(str, words)))
    until(lambda: "ready" in box("logs", name))


def count(box: Box, name: str) -> int:
    """The number that it came to."""
    lines = box("logs", "-n", "1", name).split()
    return int(lines[-1]) if lines and lines[-1].isdigit() else -1


def runs_on(box: Box, name: str) -> None:
    """It is running, and it counts."""
    assert box.one(name)["state"] == "running"
    before = count(box, name)
    until(lambda: count(box, name) > before)


def counted_on(box: Box, name: str) -> None:
    """Its numbers have no gap and none came twice: it never lost a moment of its life."""
    numbers = [int(line) for line in box("logs", name).split() if line.isdigit()]
    assert numbers == list(range(len(numbers)))


def error(done: subprocess.CompletedProcess[Any]) -> dict[str, Any]:
    """What a command that was called with --json says of its failure."""
    return dict(json.loads(done.stderr))


def nothing_of(box: Box, *, but: tuple[str, ...] = ()) -> None:
    """No container but those named, no draft, no mount, no cgroup of another."""
    assert sorted(box.names()) == sorted(but)
    checkpoints = box.root / "checkpoints"
    if checkpoints.is_dir():
        left = [
            entry for entry in os.listdir(checkpoints) if entry.startswith((".draft", ".doomed"))
        ]
        assert left == []
    homes = box.root / "containers"
    assert len(list(homes.iterdir()) if homes.is_dir() else []) == len(but)
