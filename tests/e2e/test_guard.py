"""Whenever a dumping CRIU is killed, its tasks run on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import preload
from runtime.criu import binary
from runtime.guard.guard import Guard
from tests import needs
from tests.contract.tracking_programs import compiled
from tests.e2e.box import Box, until

pytestmark = [needs.root, needs.criu, needs.compiler]

MODES = ["registers", "own-stack", "read", "futex", "suspend", "calls"]
"""What selfcheck does; not what CRIU itself interrupts: nanosleep, poll."""
KILLS = int(os.environ.get("CKPT_KILLS", "480")) // 24
"""CRIUs killed at random, in all: `make test-kills` sets more."""
CALLS = "CKPT_TEST_DIE_AT_PTRACE"


class Family:
    """A shell and its children, which check themselves all the time."""

    def __init__(self, program: Path, folder: Path, modes: list[str]) -> None:
        self._counters = [folder / mode for mode in modes]
        for counter in self._counters:
            counter.write_bytes(bytes(24))
        self._errors = folder / "errors"
        children = "".join(f"{program} {counter.name} {counter} & " for counter in self._counters)
        with self._errors.open("wb") as errors:
            self._shell = subprocess.Popen(
                ["sh", "-c", children + "wait"],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.pid = self._shell.pid
        task = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        until(lambda: len(task.read_text().split()) == len(modes))
        self.pids = [self.pid, *map(int, task.read_text().split())]
        self.is_well()

    def _seen(self) -> list[tuple[int, int, int]]:
        return [struct.unpack("=3Q", path.read_bytes()) for path in self._counters]

    def is_free(self) -> bool:
        return "TracerPid:\t0" in Path(f"/proc/{self.pid}/status").read_text()

    def is_well(self) -> None:
        """Each goes on, finds nothing wrong and isn't traced; nothing of CRIU is in it."""
        before = self._seen()

        def all_go_on() -> bool:
            assert self._shell.poll() is None
            assert not self._errors.read_bytes(), self._errors.read_text()
            pairs = zip(before, self._seen(), strict=True)
            return all(now[0] > then[0] + 1 for then, now in pairs)

        until(all_go_on, seconds=20)
        for pid in self.pids:
            here = Path(f"/proc/{pid}")
            assert "TracerPid:\t0" in (here / "status").read_text()
            assert "CRIU" not in (here / "maps").read_text()
            for link in (here / "fd").iterdir():
                name = os.readlink(link)
                assert "CRIU" not in name and not name.startswith("socket:")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._shell.wait()


class Dumps:
    """Dumps of a family that runs on, by CRIU alone: nothing of ours but the guard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "images"
        self._programs = folder / "programs"
        self._folder.mkdir()
        self.took = 0.0
        """Seconds from the freeze to its end, of the last that was to be killed by the clock."""

    def dump(self, family: Family, *, calls: int | None = None, after: float | None = None) -> bool:
        """Whether CRIU came to its end before it was killed: AFTER seconds from when it began to freeze, or before or
        after (CALLS even or odd) its call number CALLS / 2 of ptrace(2) or wait4(2)."""
        guard = Guard(self._programs)
        words = [binary.find().path, "dump", "-t", str(family.pid), "-D", str(self._folder)]
        words += ["-o", "log", "--leave-running", "-v4"]
        test = {CALLS: str(calls)} if calls is not None else {}
        process = subprocess.Popen(
            preload.command(words, guard.libraries, test),
            env={**os.environ, **guard.environment},
            pass_fds=guard.pass_fds,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        guard.started(process.pid)
        if after is not None:
            while family.is_free() and process.poll() is None:
                pass
            begun = time.monotonic()
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.kill()
            self.took = time.monotonic() - begun
        status = process.wait(60)
        guard.close()
        assert status in (0, -signal.SIGKILL), (self._folder / "log").read_text()
        return status == 0


@pytest.fixture
def dumps(tmp_path: Path) -> Dumps:
    return Dumps(tmp_path)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    modes = MODES if "CKPT_KILLS" in os.environ else ["registers", "suspend"]
    running = Family(compiled("selfcheck", tmp_path), tmp_path, modes)
    yield running
    running.close()


def last_call(dumps: Dumps, family: Family) -> int:
    """Half-calls that a dump has, a few less."""
    low, high = 0, 8192
    while high - low > 50:
        middle = (low + high) // 2
        if dumps.dump(family, calls=middle):
            high = middle
        else:
            low = middle
    family.is_well()
    return low


@pytest.mark.timeout(200 + 4 * KILLS)
def test_criu_killed_at_any_call_leaves_its_tasks_unharmed(dumps: Dumps, family: Family) -> None:
    """A quarter of them by the clock: while the parasite works nothing is called."""
    last = last_call(dumps, family)
    chance = random.Random(KILLS)
    assert dumps.dump(family, after=60)
    limit, ended = dumps.took, 0
    for number in range(KILLS):
        if number % 4:
            ended += dumps.dump(family, calls=chance.randrange(last))
        else:
            ended += dumps.dump(family, after=limit * chance.random())
        family.is_well()
    print(f"{KILLS} times killed, {ended} times too late; {last // 2} calls")
    assert ended <= 2 + KILLS // 4


def test_a_container_whose_dump_is_killed_runs_on_and_can_be_dumped(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: ckpt says that CRIU was killed; the next dump finds nothing of it."""
    script = "n=0; while n=$((n+1)); do echo $n; sleep 0.01; done"
    box.up("w", args=("sh", "-c", f"sleep 1000 & {script}"))
    until(lambda: box("logs", "w"))
    for calls in (40, 120, 200, 250, 300):
        monkeypatch.setenv(CALLS, str(calls))
        done = box.call("dump", "w", "--leave-running")
        assert done.returncode == 20, (done.returncode, done.stderr)
        assert "killed" in done.stderr
        before = len(box("logs", "w").split())
        until(lambda before=before: len(box("logs", "w").split()) > before + 2)
    monkeypatch.delenv(CALLS)
    box("dump", "w", "--as", "whole")
    box("rm", "w")
    box("restore", "whole")
    before = len(box("logs", "w").split())
    until(lambda: len(box("logs", "w").split()) > before + 2)
    numbers = [int(line) for line in box("logs", "w").split()]
    assert numbers == list(range(1, len(numbers) + 1))
