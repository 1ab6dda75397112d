"""On which CPUs each thread may run: sched_setaffinity(2), which CRIU neither dumps nor restores.

Threads are named by their ids inside the container. Only those that differ from the init are remembered: it has what
the container's cpuset gives to everyone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

from runtime.proc import status_field

Affinity = dict[int, list[int]]


def read(init_pid: int, pids: Iterable[int]) -> Affinity:
    """CPU numbers by thread, for those that chose."""
    usual = os.sched_getaffinity(init_pid)
    found: Affinity = {}
    for tid in _threads(pids):
        with contextlib.suppress(OSError):
            mine = os.sched_getaffinity(tid)
            if mine != usual:
                found[_inner(tid)] = sorted(mine)
    return found


def apply(pids: Iterable[int], wanted: Mapping[int, Iterable[int]]) -> None:
    """Give it back to threads that are restored. CPUs that aren't here don't count; with none left, all may be used."""
    if not wanted:
        return
    for tid in _threads(pids):
        with contextlib.suppress(OSError):
            cpus = set(wanted.get(_inner(tid), ()))
            if cpus:
                os.sched_setaffinity(tid, cpus)  # EINVAL if none of them is here


def _threads(pids: Iterable[int]) -> Iterable[int]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from map(int, os.listdir(f"/proc/{pid}/task"))


def _inner(tid: int) -> int:
    """A thread's id in its own pid namespace."""
    return int(status_field(tid, "NSpid").split()[-1])
