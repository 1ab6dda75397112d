"""`make test-vm-whole`: all of the project's tests with root in two guests, one without systemd and one with it.

    python -m tests.vm.whole                     each file in one of the two, whichever is free
    python -m tests.vm.whole --both              each file in both
    python -m tests.vm.whole --init systemd      only that one guest
    python -m tests.vm.whole tests/e2e/test_exec.py ...

It takes hours. A pytest of its own per file; what fails is told, and the next file's turn comes. At the end all that
failed is listed. Output is in /var/tmp/ckpt-vm/logs/whole/INIT/FILE.log, as it's written. SUITE, SUITE_B as for
test-vm (`a`, without systemd, is of SUITE). `--gently`: other programs on this machine go first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.vm import leftovers
from tests.vm.guest import Guest, GuestError
from tests.vm.image import CannotBuild
from tests.vm.inside import Detached
from tests.vm.installed import ready
from tests.vm.run import why_not
from tests.vm.segment import Segment
from tests.vm.settings import DEFAULT_SUITE, REPO

LOGS = Path(os.environ.get("CKPT_VM_LOGS", "/var/tmp/ckpt-vm/logs")) / "whole"
INITS = ("tiny", "systemd")
MEMORY_MB = 3072
"""Tests hold gigabytes in places, and Debian 13's /tmp is half of this."""

# What depends on the host comes first, what takes hours last.
_FIRST = """
contract/test_cgroups_contract e2e/test_cgroups e2e/test_run_limits e2e/test_doctor e2e/test_run_network
e2e/test_network_bridge e2e/test_network_l2 e2e/test_security e2e/test_run_basics e2e/test_criu_netfilter
contract/test_tracking e2e/test_checkpoints e2e/migrate/test_migrate_moves e2e/migrate/test_migrate_warm
e2e/migrate/test_migrate_lazy e2e/test_warm_parts e2e/test_pager e2e/migrate/test_migrate_shared
e2e/migrate/test_migrate_refused e2e/test_survive_network e2e/test_survive_streams e2e/test_tracking_injection
e2e/test_run_process e2e/test_run_files e2e/test_run_restart e2e/test_comeback e2e/test_dump_pause
e2e/migrate/test_migrate_failures
"""
_LAST = """
contract/test_lanes e2e/test_transport_lanes e2e/test_transport_ssh e2e/test_lab e2e/test_sweep
e2e/test_benchmarks e2e/test_demo e2e/test_survive_claims
"""
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.M)


def files() -> list[str]:
    """The project's test files that need a host, in the order of their turns."""
    found = {
        path.relative_to(REPO / "tests").with_suffix("").as_posix()
        for folder in ("contract", "e2e")
        for path in (REPO / "tests" / folder).rglob("test_*.py")
    }
    first, last = _FIRST.split(), _LAST.split()
    middle = sorted(found - {*first, *last})
    order = [name for name in (*first, *middle, *last) if name in found]
    return [f"tests/{name}.py" for name in order]


class Worker(threading.Thread):
    """Takes files from TURNS until there are none, runs them in GUEST, and writes down what FAILED."""

    def __init__(
        self, guest: Guest, turns: queue.Queue[str], failed: list[str], *, gently: bool
    ) -> None:
        super().__init__(name=guest.init, daemon=True)
        self._guest = guest
        self._turns = turns
        self._failed = failed
        self._gently = gently
        self._logs = LOGS / guest.init
        self._logs.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        try:
            self._start()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._one(self._turns.get_nowait())
        except Exception as error:
            self._fail(f"this guest: {error}")

    def _start(self) -> None:
        self._guest.cut_power()
        self._guest.start()
        if self._gently and (pid := self._guest.pid()):
            # QEMU is in a session of its own, and sessions share processors by this number, nice(1) or not: sched(7).
            Path(f"/proc/{pid}/autogroup").write_text("5")
        self._guest.wait(3600)

    def _one(self, file: str) -> None:
        began = time.monotonic()
        target = self._logs / f"{Path(file).stem}.log"
        status = Detached(self._guest, (file,), target).wait()
        text = target.read_text(errors="replace")
        last = (text.splitlines() or ["nothing said"])[-1].strip("= ")
        self._say(f"{file}: {last} [{time.monotonic() - began:.0f} s]")
        for test in _FAILED.findall(text) or ([file] if status != 0 else []):
            self._fail(test)
        if complaints := self._guest.complaints():
            self._fail(f"{file}: the kernel: {complaints[0]}")
        if status is None or complaints:
            shutil.copy(self._guest.console, target.with_suffix(".console"))
            self._start()

    def _fail(self, what: str) -> None:
        self._failed.append(f"{self.name}: {what}")
        self._say(f"FAILED {what}")

    def _say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.name:7} {what}", flush=True)


@contextlib.contextmanager
def guests(inits: list[str]) -> Iterator[list[Guest]]:
    """Not switched on yet. Raises CannotBuild."""
    suite = os.environ.get("SUITE") or DEFAULT_SUITE
    suites = {"tiny": suite, "systemd": os.environ.get("SUITE_B") or suite}
    name = leftovers.name("w")
    folder = leftovers.FOLDERS / name
    segment = Segment(name)
    made: list[Guest] = []
    try:
        for letter, init in zip("ab", inits, strict=False):
            disk = ready(suites[init], name)
            made.append(
                Guest(
                    letter,
                    disk.image,
                    segment,
                    folder / letter,
                    base=disk.disk,
                    init=init,
                    memory=MEMORY_MB,
                    cargo=disk.cargo,
                )  # fmt: skip
            )
        segment.up()  # here, once: they start at the same moment
        yield made
    finally:
        for guest in made:
            guest.cut_power()
        segment.down()
        shutil.rmtree(folder, ignore_errors=True)


def main(words: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="tests.vm.whole")
    parser.add_argument("--both", action="store_true")
    parser.add_argument("--init", choices=INITS)
    parser.add_argument("--gently", action="store_true")
    parser.add_argument("files", nargs="*")
    given = parser.parse_args(words)
    if reason := why_not():
        print(f"test-vm-whole: {reason}", file=sys.stderr)
        return 1
    leftovers.end_on_sigterm()
    leftovers.sweep()
    began = time.monotonic()
    failed: list[str] = []
    turns = [queue.Queue[str]() for _ in INITS] if given.both else [queue.Queue[str]()] * 2
    for turn in {id(one): one for one in turns}.values():
        for file in given.files or files():
            turn.put(file)
    try:
        with guests([given.init] if given.init else list(INITS)) as made:
            workers = [
                Worker(guest, turn, failed, gently=given.gently)
                for guest, turn in zip(made, turns, strict=False)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    except (CannotBuild, GuestError) as error:
        print(f"test-vm-whole: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *sorted(failed)]))
    print(f"test-vm-whole: {len(failed)} failed, {time.monotonic() - began:.0f} s in all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
