"""Ctrl-C, SIGTERM and SIGKILL of commands at many moments: nothing is lost, nothing is left after `ckpt recover`."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.paths import HostPaths
from tests import leaks, needs
from tests.e2e.box import Box, opened, until
from tests.e2e.snagging import counted_on, nothing_of, runs_on, start, with_snags

# Scores of commands each, which take a second or two on a busy machine.
pytestmark = [*needs.CHECKPOINTS, pytest.mark.timeout(400)]

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
FEWER = SIGNALS[1:]  # SIGINT goes the way of SIGTERM
MOMENTS = 3


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, with_snags(small_rootfs)) as made:
        yield made


def moments(box: Box, *words: object) -> Iterator[float]:
    """Delays in seconds, spread over the time that a whole run of the command took just now."""
    began = time.monotonic()
    box(*words)
    whole = time.monotonic() - began
    for number in range(MOMENTS):
        # Most of a command's first third is Python's start.
        yield whole * (0.3 + 0.75 * number / MOMENTS)


def struck(box: Box, delay: float, number: int, *words: object) -> int:
    """Start a command and send it a signal after DELAY seconds; its exit status, once all has settled."""
    process = box.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)  # the moment is the parameter of the test; any will do
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()
    code = process.wait(100)
    assert "Traceback" not in said, said
    assert "bug" not in said, said
    if number != signal.SIGKILL:
        assert code in (0, 128 + number, -number), (code, said)
        # A signal before Python has set a handler ends it at once.
        assert code != 128 + number or said == "ckpt: interrupted\n", said
    # A monitor may not have noticed yet, and then finishes the same in parallel.
    until(lambda: "nothing to recover" in box("recover") and not box._ending())
    return code


def good(box: Box) -> list[str]:
    """The checkpoints, which are all as they were written."""
    box("checkpoints", "verify")
    return [entry["name"] for entry in json.loads(box("checkpoints", "ls", "--json"))]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_dump_that_is_ended_leaves_the_container_or_a_checkpoint(box: Box, number: int) -> None:
    start(box, "web", "memory", 4 << 20)
    for at, delay in enumerate(moments(box, "dump", "web", "--as", "first", "--leave-running")):
        struck(box, delay, number, "dump", "web", "--as", f"c{at}")
        nothing_of(box, but=("web",))
        state = box.one("web")["state"]
        there = f"c{at}" in good(box)
        if state == "running":
            runs_on(box, "web")
            counted_on(box, "web")
        else:
            assert there
            box("rm", "web")
            box("restore", f"c{at}")
            runs_on(box, "web")


@pytest.mark.parametrize("number", FEWER, ids=lambda number: number.name)
def test_a_dump_that_leaves_running_never_stops_the_container(box: Box, number: int) -> None:
    start(box, "web", "count")
    for at, delay in enumerate(moments(box, "dump", "web", "--as", "first", "--leave-running")):
        struck(box, delay, number, "dump", "web", "--leave-running", "--as", f"c{at}")
        nothing_of(box, but=("web",))
        runs_on(box, "web")
        good(box)
    counted_on(box, "web")
    box("dump", "web", "--as", "last")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_restore_that_is_ended_gives_a_running_container_or_none(box: Box, number: int) -> None:
    start(box, "web", "memory", 4 << 20)
    box("dump", "web", "--as", "one", "--leave-running")
    delays = moments(box, "restore", "one", "--as", "first")
    for delay in delays:
        struck(box, delay, number, "restore", "one", "--as", "copy")
        if "copy" in box.names():
            nothing_of(box, but=("copy", "first", "web"))
            runs_on(box, "copy")
            box("rm", "-f", "copy")
        nothing_of(box, but=("first", "web"))
    box("restore", "one", "--as", "copy")
    runs_on(box, "copy")
    runs_on(box, "web")


@pytest.mark.parametrize("number", FEWER, ids=lambda number: number.name)
def test_a_run_that_is_ended_gives_a_running_container_or_none(box: Box, number: int) -> None:
    words = ("run", "-d", "--network", "none", box.rootfs, "--", "snags", "count")
    for delay in moments(box, *words[:2], "--name", "first", *words[2:]):
        struck(box, delay, number, *words[:2], "--name", "web", *words[2:])
        if "web" in box.names():
            nothing_of(box, but=("first", "web"))
            if box.one("web")["state"] == "created":
                # A kill between making and starting it: what is there is whole, so recover starts it if it was about
                # to be started, and removes it otherwise.
                assert number == signal.SIGKILL
                box("recover")
                if "web" not in box.names():
                    nothing_of(box, but=("first",))
                    continue
            runs_on(box, "web")
            box("rm", "-f", "web")
        nothing_of(box, but=("first",))
    box("rm", "-f", "first")
    until(lambda: not cgroups_of(box))


def cgroups_of(box: Box) -> list[str]:
    """The cgroups of its containers."""
    tag = HostPaths.of(str(box.root)).tag
    return [path for path in leaks.cgroups() if f"/{tag}/" in path]
