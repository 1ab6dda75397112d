"""What a run left that was killed: QEMUs, wires, folders, and at the near end sshd and containers.

Runs of run.py, smoke.py and pairs.py are named by their process id (`name`), and so are all their things; those of
pytest inside of run.py carry pytest's tag, and tests/sweep.py takes them away. Only what surely belongs to a run that
is dead is touched. A SIGTERM need not leave anything: see `end_on_sigterm`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import sweep as runs
from tests.vm.near import Near
from tests.vm.segment import Segment
from tests.vm.settings import CACHE

log = logging.getLogger(__name__)

FOLDERS = Path("/var/tmp")
_NAME = re.compile(r"ckpt-vm[a-z]?([0-9]+)(-i)?")
_WORK = re.compile(r"\.(?:installing|commit|cargo|wheels|keys)-([0-9]+)(?:-.*|\.img)?")
"""What is on its way into the cache."""


def name(kind: str = "") -> str:
    """Of this run; KIND: a letter."""
    return f"ckpt-vm{kind}{os.getpid()}"


def end_on_sigterm(clean_up: Callable[[], None] | None = None) -> None:
    """Leave nothing, as after Ctrl-C: the interpreter unwinds, or CLEAN_UP is called, which waits for no thread."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        if clean_up is None:
            sys.exit(143)
        try:
            clean_up()
        finally:
            os._exit(143)

    signal.signal(signal.SIGTERM, end)


def sweep() -> None:
    """Take away what dead runs left."""
    for folder in _of_the_dead(CACHE, _WORK):
        _end(folder)
    for folder in _of_the_dead(FOLDERS, _NAME):
        for part in ("near", "installer"):
            if (folder / part).exists():
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    Near(Segment(folder.name), folder / part).close()
        _end(folder)
    for namespace in _of_the_dead(Path("/run/netns"), _NAME):
        log.info("a dead run left its wire %s", namespace.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            Segment(namespace.name).down()


def _of_the_dead(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [(entry, pattern.fullmatch(entry.name)) for entry in entries]
    return [entry for entry, match in found if match and not _lives(int(match[1]))]


def _lives(pid: int) -> bool:
    """Whether the run does; a process id that was given to another program doesn't count."""
    try:
        command = Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False
    return b"python" in command


def _end(folder: Path) -> None:
    """Kill who was started with a path in FOLDER among its words or in its environment, and delete it."""
    log.info("a dead run left %s", folder)
    path = os.fsencode(folder) + b"/"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(path in (process / what).read_bytes() for what in ("cmdline", "environ")):
                os.kill(int(process.name), signal.SIGKILL)
    with contextlib.suppress(OSError):  # something is mounted there still
        runs.clear(folder)
