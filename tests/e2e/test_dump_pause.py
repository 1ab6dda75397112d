"""A checkpoint of a container that runs on: what it holds is one moment, and its pause knows nothing of its memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.paths import ContainerPaths
from runtime.tracking import choose
from tests import needs
from tests.e2e.box import Box, opened, until
from tests.e2e.snagging import nothing_of
from tests.patience import patient

pytestmark = needs.CHECKPOINTS

SOURCE = Path(__file__).parent / "pause_lab" / "crowd.c"
OTHERS = Path(__file__).parent / "migrate"
PROCESSES, THREADS, PAGES = 3, 2, 1024
MEMORY = PROCESSES * THREADS * PAGES * 4096


def rootfs_with(small_rootfs: Path, *sources: Path) -> Path:
    """A root file system with programs of these sources, built once."""
    place = small_rootfs.parent / sources[0].stem
    if not place.exists():
        new = small_rootfs.parent / f"{place.name}.new"
        shutil.copytree(small_rootfs, new, symlinks=True)
        for source in sources:
            words = ["cc", "-static", "-O1", "-Wall", "-o", str(new / "bin" / source.stem)]
            subprocess.run([*words, str(source)], check=True, timeout=patient(100))
        new.rename(place)
    return place


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, rootfs_with(small_rootfs, SOURCE)) as made:
        made.up("web", args=("crowd", str(PROCESSES), str(THREADS), str(PAGES)))
        until(lambda: "ready" in made("logs", "web"))
        yield made


def is_well(box: Box, name: str = "web") -> None:
    """Every thread has looked at all its pages, and each is as its owner has left it."""
    before = len(verdicts(box, name))
    box("kill", "-s", "USR1", name)
    until(lambda: len(verdicts(box, name)) == before + PROCESSES * THREADS)
    new = verdicts(box, name)[before:]
    assert len({(process, thread) for process, thread, _ in new}) == PROCESSES * THREADS
    assert {bad for _, _, bad in new} == {"bad=0"}


def verdicts(box: Box, name: str) -> list[tuple[str, str, str]]:
    for home in (box.root / "containers").iterdir():
        paths = ContainerPaths(home, home)
        if json.loads(paths.record.read_text())["name"] == name:
            found = re.findall(r" V (\d+) (\d+) (bad=\d+)$", paths.log.read_text(), re.MULTILINE)
            return list(found)
    raise AssertionError(f"no container {name}")


def dump(box: Box, *words: str) -> dict[str, Any]:
    return dict(json.loads(box("dump", "web", "--leave-running", "--json", *words)))


def states(box: Box, name: str) -> str:
    """The states of all processes of a container, as ps shows them."""
    return "".join(sorted(box("exec", name, "ps", "-o", "stat").split()[1:]))


def test_the_copy_is_whole_and_of_one_moment(box: Box, tmp_path: Path) -> None:
    first = dump(box, "--as", "first")
    assert (first["mode"], first["mode_why"], first["tracker"]) == ("warm", "", choose.best().name)
    assert first["rounds"][0]["bytes"] >= MEMORY // 2
    sizes = first["bytes"]
    # A quarter of it is written again and again.
    assert sizes["memory"] > MEMORY * 3 // 4
    assert sizes["images"] + sizes["memory_frozen"] < MEMORY // 2
    times = first["times"]
    assert first["pause_ms"] == pytest.approx((times["resumed"] - times["frozen"]) / 1e6, abs=0.1)
    is_well(box)
    assert "Z" in states(box, "web")

    # Like any other: good, readable, restored beside the original, and dumped again from there.
    assert box("checkpoints", "verify", "first") == "first: good\n"
    found = json.loads(box("checkpoints", "inspect", "first", "--json"))
    assert [p["comm"] for p in found["processes"]].count("crowd") >= PROCESSES
    kinds = {one["kind"]: one["dumped"] for p in found["processes"] for one in p["memory"]}
    assert kinds["anonymous"] >= MEMORY // 2 // PROCESSES
    box("restore", "first", "--as", "beside")
    is_well(box, "beside")
    assert "Z" in states(box, "beside")
    box("rm", "-f", "beside")

    # In a stream as well, to a file and to a pipe, and out of one.
    dump(box, "-o", str(tmp_path / "file"))
    with (tmp_path / "pipe").open("wb") as file:
        done = box.call(
            "dump", "web", "--leave-running", "--json", "-o", "-", text=False,
            capture_output=False, stdout=file, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert json.loads(done.stderr)["mode"] == "warm"
    is_well(box)
    for name in ("file", "pipe"):
        box("rm", "-f", "web")
        box("restore", str(tmp_path / name))
        is_well(box)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
    nothing_of(box, but=("web",))


def test_what_is_shared_and_what_was_written_over_files_is_no_part_of_the_pause(
    ckpt_root: Path, small_rootfs: Path
) -> None:
    """Every page is checked by the program that has written it: after the dump, and after a restore."""
    place = rootfs_with(small_rootfs, OTHERS / "sharer.c", OTHERS / "keeper.c")
    with opened(ckpt_root, place) as box:
        for args, least, most in (
            (("sharer", "16", "3", "2"), 4 << 20, 2 << 20),
            # Every other page of a file, and a segment that only CRIU carries.
            (("keeper", "32", "2", "4", "1"), 4 << 20, 3 << 20),
        ):
            box.up("web", args=args)
            until(lambda: "ready" in box("logs", "web"))
            found = dump(box, "--as", args[0])
            assert found["mode"] == "warm" and found["bytes"]["memory"] >= least
            assert found["bytes"]["images"] < most
            assert found["bytes"]["memory_frozen"] < found["bytes"]["memory"]
            assert box("checkpoints", "verify", args[0]) == f"{args[0]}: good\n"
            for again in (False, True):
                if again:
                    box("rm", "-f", "web")
                    box("restore", args[0])
                box("kill", "-s", "USR1", "web")
                until(lambda: "verdict" in box("logs", "web"))
                assert " wrong 0 of " in box("logs", "web")
            box("rm", "-f", "web")
        nothing_of(box)


ENDS = [
    ("round", "kill"), ("dump", "kill"), ("dump", "fail"), ("complete", "kill"), ("publish", "fail"),
]  # fmt: skip


def test_whatever_ends_it_at_whatever_point_the_container_runs_on(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for point, how in ENDS:
        mark = tmp_path / f"{point}-{how}"
        monkeypatch.setenv("CKPT_TEST_STOP_AT", f"{point}:{how}={mark}")
        done = box.call("dump", "web", "--leave-running", "--as", "one")
        assert done.returncode == (-9 if how == "kill" else 1), (point, done.stderr)
        assert mark.with_suffix(".reached").exists()
        monkeypatch.delenv("CKPT_TEST_STOP_AT")
        until(lambda: not list((box.root / "checkpoints").glob(".draft*")))
    is_well(box)
    # Nobody traces it or tracks its memory any more, and nothing is in the way of the next.
    until(lambda: box.call("dump", "web", "--leave-running", "--as", "next").returncode == 0)
    nothing_of(box, but=("web",))


def test_a_dump_that_must_converge_rather_gives_up_than_pauses_for_long(box: Box) -> None:
    # Larger than for the others: a round has to take so long that more than a MiB is written meanwhile.
    box("rm", "-f", "web")
    box.up("web", args=("crowd", str(PROCESSES), str(THREADS), str(6 * PAGES)))
    until(lambda: "ready" in box("logs", "web"))
    few = ("--max-rounds", "1", "--max-downtime", "1")
    said = box.fails(13, "dump", "web", "--leave-running", *few, "--abort-if-not-converging")
    assert "1 rounds were not enough" in said and "without --abort-if-not-converging" in said
    assert json.loads(box("checkpoints", "ls", "--json")) == []
    found = dump(box, "--as", "few", *few)
    assert len(found["rounds"]) == 1 and found["rounds_why"] == "1 rounds were not enough"
    for mode in (("--mode", "cold", "--leave-running"), ()):
        assert "--abort" in box.fails(3, "dump", "web", *mode, "--abort-if-not-converging")
    is_well(box)
    nothing_of(box, but=("web",))


def test_without_what_warm_needs_it_is_cold_and_says_why(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = box.fails(3, "dump", "web", "--mode", "warm")
    assert "no pause to shorten" in said
    assert dump(box, "--as", "asked", "--mode", "cold")["mode_why"] == ""
    for program in (box.root / "programs").glob("preload-*"):
        program.unlink()
    (tmp_path / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    for words in (("--mode", "warm"), ("--abort-if-not-converging",)):
        said = box.fails(13, "dump", "web", "--leave-running", *words)
        assert words[0] in said and "--mode cold" in said
    found = dump(box, "--as", "cold")
    assert found["mode"] == "cold" and found["mode_why"]
    assert found["bytes"]["images"] > MEMORY // 2 and found["pause_ms"] > 0
    is_well(box)
