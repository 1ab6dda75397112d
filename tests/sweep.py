"""Take away what test runs left behind: this one's leftovers, and those of a run that was killed.

Only what is surely a run's own is touched: what carries its tag (tests/runtag.py), and the tag's
owner must be dead, or be this run. A cgroup is removed only when it's empty; a directory only when
nothing is mounted in it any more. Nothing is looked up by a general name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from tests import leaks, runtag
from tests.patience import patient

MNT_DETACH = 2
FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
TELLING_FILES = ("environ", "cmdline", "mountinfo")


def dead_runs() -> set[str]:
    """Tags of runs whose owner is dead, found on directories, network namespaces and processes."""
    tags: set[str] = set()
    for folder in FOLDERS:
        if os.path.isdir(folder):
            for entry in Path(folder).glob("ckpt-t*"):
                tags |= runtag.tags_in(entry.name)
    if os.path.isdir("/run/netns"):
        for entry in Path("/run/netns").glob("ckpt*"):
            tags |= runtag.tags_in(entry.name)
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            tags |= leaks.tags_in_environment(environ.read_bytes().decode(errors="replace"))
    return {tag for tag in tags if not runtag.is_alive(tag)}


def sweep(tag: str) -> list[str]:
    """Remove everything of one run; return what was found, a line each."""
    processes = [pid for pid in leaks.processes_of_run(tag) if pid != os.getpid()]
    inhabited = _cgroups_of(processes)
    found = _kill(processes)
    found += _remove_namespaces(tag)
    for folder in FOLDERS:
        if os.path.isdir(folder):
            for entry in Path(folder).glob("ckpt-t*"):
                if runtag.carries(entry.name, tag):
                    found += clear(entry)
                    found.append(str(entry))
    found += _remove_cgroups(tag, inhabited)
    return found


def clear(root: Path) -> list[str]:
    """Unmount what is mounted below `root` and delete it; return the mount points that there were.

    Raises OSError when something stays mounted: deleting would then reach into another tree.
    """
    mounts = leaks.mount_points(str(root))
    libc = ctypes.CDLL(None, use_errno=True)
    for point in reversed(mounts):
        libc.umount2(os.fsencode(point), MNT_DETACH)
    if stuck := leaks.mount_points(str(root)):
        raise OSError(f"still mounted, so not deleted: {', '.join(stuck)}")
    if root.is_symlink() or root.is_file():
        root.unlink()
    else:
        shutil.rmtree(root, ignore_errors=True)
    return [f"mount {point}" for point in mounts]


def stop_processes_using(root: Path) -> list[str]:
    """Kill this run's processes that have to do with one directory; return their command lines.

    That is: `root` occurs in their environment, their command line or their root mount.
    """
    needle = str(root)
    using = []
    for pid in leaks.processes_of_run(runtag.TAG):
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            folder = Path("/proc", str(pid))
            texts = [
                (folder / name).read_bytes().decode(errors="replace") for name in TELLING_FILES
            ]
            texts[-1] = leaks.root_mount(texts[-1])
            if any(needle in text for text in texts):
                using.append(pid)
    return _kill(using)


def _kill(pids: Iterable[int]) -> list[str]:
    killed = []
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ")
            os.kill(pid, signal.SIGKILL)
            killed.append((pid, command.decode(errors="replace").strip()))
    deadline = time.monotonic() + patient(5)
    while time.monotonic() < deadline and any(_runs(pid) for pid, _ in killed):
        time.sleep(0.01)
    return [f"process {pid} {command}" for pid, command in killed]


def _runs(pid: int) -> bool:
    """Whether the process is more than a zombie that waits for its parent."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _remove_namespaces(tag: str) -> list[str]:
    found = []
    folder = Path("/run/netns")
    names = [entry.name for entry in folder.glob("ckpt*")] if folder.is_dir() else []
    for name in names:
        if runtag.carries(name, tag):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            found.append(f"network namespace {name}")
    return found


def _cgroups_of(pids: Iterable[int]) -> set[str]:
    """The cgroups of ckpt that processes are in, as /proc/PID/cgroup calls them."""
    paths = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(pid), "cgroup").read_text().splitlines():
                path = line.split(":", 2)[2]
                if path.startswith("/ckpt") and path not in ("/ckpt", "/ckpt.slice"):
                    paths.add(path)
    return paths


def _remove_cgroups(tag: str, inhabited: Collection[str]) -> list[str]:
    """Remove cgroups with the tag in their name, and those where the run's processes were."""
    found = []
    # Children first; rmdir refuses where a process or a child is left.
    for folder in sorted(leaks.cgroups(), key=len, reverse=True):
        was_inhabited = any(f"{folder}/".find(f"{path}/") >= 0 for path in inhabited)
        if was_inhabited or runtag.carries(folder, tag):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
                found.append(f"cgroup {folder}")
    return found
