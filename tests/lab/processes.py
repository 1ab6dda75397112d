"""Which processes belong to a lab, and how they are ended.

A process belongs to a lab if one of the lab's network namespaces is its own, if its environment has
a CKPT_ROOT in the lab's directory, if its root file system lies there, or if one of its ancestors
belongs to it. None of this can be true of a process which the lab didn't cause. The caller and its
ancestors are spared, should somebody take a lab down from inside.

Processes are signalled through pidfds, after a second look: a process id alone could be somebody
else's by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from tests import leaks
from tests.patience import patient

_SECONDS = patient(10)


def of_lab(directory: Path, namespaces: set[int]) -> set[int]:
    """The processes of the lab in DIRECTORY with NAMESPACES, and their descendants, as of now."""
    parents = _parents()
    found = {pid for pid in parents if _belongs(pid, directory, namespaces)}
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    todo = list(found)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found - _line_of(os.getpid(), parents)


def end(directory: Path, namespaces: set[int], spare: Iterable[int] = ()) -> list[int]:
    """Kill the lab's processes but SPARE until none is left; returns those that would not go."""
    spared = set(spare)
    deadline = time.monotonic() + _SECONDS
    while True:
        left = sorted(pid for pid in of_lab(directory, namespaces) - spared if _runs(pid))
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            _kill(pid, directory, namespaces)
        time.sleep(0.02)


def start_time(pid: int) -> str:
    """What tells a process from a later one with the same id; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _kill(pid: int, directory: Path, namespaces: set[int]) -> None:
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            # Whoever PID was, now it is held: look again.
            if pid in of_lab(directory, namespaces):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _belongs(pid: int, directory: Path, namespaces: set[int]) -> bool:
    folder = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        if (folder / "ns/net").stat().st_ino in namespaces:
            return True
    with contextlib.suppress(OSError):
        mark = b"CKPT_ROOT=" + os.fsencode(directory) + b"/"
        if any(word.startswith(mark) for word in (folder / "environ").read_bytes().split(b"\0")):
            return True
    with contextlib.suppress(OSError):
        return f"{directory}/" in leaks.root_mount((folder / "mountinfo").read_text())
    return False


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = int(fields[1])
    return found


def _line_of(pid: int, parents: dict[int, int]) -> set[int]:
    """PID and its ancestors."""
    line = set()
    while pid and pid not in line:
        line.add(pid)
        pid = parents.get(pid, 0)
    return line


def _runs(pid: int) -> bool:
    """Whether it is more than a zombie, which waits for its parent only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
