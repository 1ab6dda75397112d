"""Proof that a test left nothing behind: look before, look after, compare.

Each kind of resource has one function that lists what is there now as strings which a person can
read. A test may be blamed only for what is new. Two reasons make this harder than it sounds:

- Things vanish late: a killed process takes a moment, a network namespace goes with its last user.
  So `new_since` looks again for a while before it blames.
- Other runs work on the same machine. What lies in this process (descriptors, threads, children) is
  ours for certain. Of the global kinds only those count that carry this run's tag, unless the
  machine is ours alone, as the build machine is (`strict`): then everything new counts.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from tests import runtag
from tests.patience import patient

Snapshot = Mapping[str, frozenset[str]]

CGROUP = Path("/sys/fs/cgroup")
# What containers of all roots share, and which therefore stays.
_SHARED_CGROUPS = ("ckpt", "ckpt.slice", "monitors")
# Where ckpt or its tests put files, and how they are called there.
PLACES = (("/tmp", "ckpt*"), ("/var/tmp", "ckpt*"), ("/dev/shm", "ckpt*"), ("/run/ckpt", "**/*"))


# --- inside this process --------------------------------------------------------------------------


def _fds() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}"
        except FileNotFoundError:
            continue  # the descriptor that listed the directory


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        yield f"{thread.name} ({thread.ident})"


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except FileNotFoundError:
            continue
        for child in children:
            yield f"{child} {_command(child)}"


def _command(pid: str) -> str:
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "(gone)"
    return " ".join(word.decode(errors="replace") for word in words)[:200].strip() or f"({state})"


# --- on the machine -------------------------------------------------------------------------------


def _processes() -> Iterator[str]:
    """Processes of this run, daemons that left the family included."""
    ours = os.getpid()
    for pid in processes_of_run(runtag.TAG):
        if pid != ours:
            yield f"{pid} {_command(str(pid))} [{runtag.TAG}]"


def processes_of_run(tag: str) -> list[int]:
    """Processes with a run's tag in their environment, or whose root lies in its directories.

    A monitor keeps little of the environment that it was started with, but its CKPT_ROOT lies in
    one of the run's directories. A container's processes have an environment of their own; their
    root is an overlay whose upper directory lies there. Only the root mount is looked at: any other
    mount may be seen by processes which have nothing to do with the run.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
            mounts = (entry / "mountinfo").read_text()
            terminal = (entry / "stat").read_text().rpartition(")")[2].split()[4] != "0"
        except OSError:
            continue  # gone, or not ours to read
        if terminal:  # perhaps a person who looks at what a run left
            environment = environment.replace("CKPT_ROOT=", "")
        if tag in tags_in_environment(environment) or runtag.carries(root_mount(mounts), tag):
            found.append(int(entry.name))
    return found


def tags_in_environment(environment: str) -> set[str]:
    """Tags in those variables of /proc/PID/environ that tell whose a process is."""
    telling = (f"{runtag.VARIABLE}=", "CKPT_ROOT=")
    words = [word for word in environment.split("\0") if word.startswith(telling)]
    return {tag for word in words for tag in runtag.tags_in(word)}


def root_mount(mountinfo: str) -> str:
    """The line of /proc/PID/mountinfo for the topmost mount on /, see proc(5)."""
    return "".join([line for line in mountinfo.splitlines() if line.split()[4] == "/"][-1:])


def mount_points(below: str = "") -> list[str]:
    """Mount points of this mount namespace under a directory, in the order of mounting."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if point == below or point.startswith(f"{below}/")]


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, source = fields[fields.index("-") + 1 :][:2]
        yield f"{fields[4]} {kind} {source} {fields[3]}"


def _namespaces() -> Iterator[str]:
    folder = Path("/run/netns")
    if folder.is_dir():
        yield from (entry.name for entry in folder.iterdir())


def cgroups() -> Iterator[str]:
    """Cgroups named ckpt*, and below, in every hierarchy; not those that all containers share."""
    for folder, _, _ in os.walk(CGROUP):
        if "/ckpt" in folder and os.path.basename(folder) not in _SHARED_CGROUPS:
            yield folder


def _links() -> Iterator[str]:
    for _, name in socket.if_nameindex():
        yield name


def _tables() -> Iterator[str]:
    """nftables of ckpt, and those which CRIU makes to lock a network."""
    nft = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nft is None or os.geteuid() != 0:
        return
    listed = subprocess.run([nft, "list", "tables"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        if line.split()[-1].startswith(("ckpt", "CRIU-")):
            yield line.removeprefix("table ")


def _files() -> Iterator[str]:
    for folder, pattern in PLACES:
        if os.path.isdir(folder):
            yield from (str(path) for path in Path(folder).glob(pattern))


_LOOK: dict[str, Callable[[], Iterator[str]]] = {
    "fds": _fds,
    "threads": _threads,
    "children": _children,
    "processes": _processes,
    "mounts": _mounts,
    "network namespaces": _namespaces,
    "cgroups": cgroups,
    "links": _links,
    "nftables": _tables,
    "files": _files,
}
LOCAL = ("fds", "threads", "children")
EVERYTHING = tuple(_LOOK)


# --- the comparison -------------------------------------------------------------------------------


def look(kinds: Collection[str]) -> Snapshot:
    """What is there now, by kind."""
    return {kind: frozenset(_LOOK[kind]()) for kind in kinds}


def _new(before: Snapshot, *, strict: bool) -> dict[str, list[str]]:
    now = look(before)
    new = {}
    for kind, was in before.items():
        items = now[kind] - was
        if not strict and kind not in LOCAL:
            items = frozenset(item for item in items if runtag.carries(item))
        if items:
            new[kind] = sorted(items)
    return new


def new_since(before: Snapshot, *, strict: bool, patience: float = 3.0) -> dict[str, list[str]]:
    """What is there now and wasn't in `before`, given `patience` seconds to vanish by itself."""
    deadline = time.monotonic() + patient(patience)
    while new := _new(before, strict=strict):
        if time.monotonic() > deadline:
            break
        # An object in a reference cycle closes its descriptor only when it's collected.
        gc.collect()
        time.sleep(0.02)
    return new


def describe(new: Mapping[str, Collection[str]]) -> str:
    return "\n".join(f"  {kind}: {item}" for kind, items in new.items() for item in items)
