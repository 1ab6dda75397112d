"""A place for programs of others that run with root's rights: what they start and break stays in it.

Own mount, pid and cgroup namespaces, and cgroups `ckpt-peers-PID` of their own as the roots of what they see. When
the first process in there ends, all others do.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import Host


class PeerFault(Exception):
    """A peer could not be set up, or failed at what it was to do."""


_INSIDE = r"""
set -e
root=$0 work=$1 v2=$2
mount --bind "$root" "$root"
mkdir -p "$root/oldroot" "$root/work"
mount --bind "$work" "$root/work"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs var/tmp
if [ -n "$v2" ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  mkdir sys/fs/cgroup/first && echo $$ >sys/fs/cgroup/first/cgroup.procs
  for one in $(cat sys/fs/cgroup/cgroup.controllers); do
    echo "+$one" >sys/fs/cgroup/cgroup.subtree_control
  done
else
  mount -t tmpfs tmpfs sys/fs/cgroup
  shift 2
  while [ $# -gt 1 ]; do
    mkdir "sys/fs/cgroup/$1" && mount -t cgroup -o "$2" cgroup "sys/fs/cgroup/$1"
    shift 2
  done
fi
pivot_root . oldroot
cd /
umount -l /oldroot
echo ready
exec >/dev/null
set +e
trap : CHLD
while :; do sleep 3600 & wait $!; done
"""


def hierarchies() -> tuple[dict[str, str], list[str]]:
    """Cgroup v1 mount points on this machine with their options, and those of v2."""
    v1: dict[str, str] = {}
    v2: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()
        if kind == "cgroup":
            wanted = [o for o in options.split(",") if o not in ("rw", "ro", "xattr", "relatime")]
            wanted = ["none", *wanted] if wanted[0].startswith("name=") else wanted
            v1[before.split()[4]] = ",".join(wanted)
        elif kind == "cgroup2":
            v2.append(before.split()[4])
    return v1, v2


class Apart:
    """The namespaces, cgroups and root directory of the peers. WORK is /work in there. Use as a context manager."""

    def __init__(self, root: Path, work: Path) -> None:
        self._root, self._work = root, work
        self._stack = contextlib.ExitStack()
        self._first = 0
        self._cgroups: list[Path] = []
        self._leaf = ""

    def __enter__(self) -> Apart:
        with contextlib.ExitStack() as stack:
            v1, v2 = hierarchies()
            # In v2 beside v1, too, though it isn't shown in there: CRIU dumps all cgroups below those of a task, and
            # makes them again at restore. From the root that would be everybody's.
            self._make_cgroups([Path(point) for point in (*v1, *v2)])
            self._leaf = "cgroup.procs" if v1 else "first/cgroup.procs"
            stack.callback(self._remove_cgroups)
            pairs = [word for point, o in v1.items() for word in (Path(point).name, o)]
            argv = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child"]
            argv += ["--propagation", "private", "--", "sh", "-c", _INSIDE]
            argv += [str(self._root), str(self._work), *(["", *pairs] if pairs else ["v2"])]
            process = subprocess.Popen(
                self._joined(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, process)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise PeerFault("the peers' namespaces could not be made")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            self._first = int(children.split()[0])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_cgroups(self, parents: Sequence[Path]) -> None:
        for parent in parents:
            made = parent / f"ckpt-peers-{os.getpid()}"
            made.mkdir(exist_ok=True)
            self._cgroups.append(made)
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty ones take no process
                with contextlib.suppress(OSError):
                    if not (made / name).read_text().strip():
                        (made / name).write_text((parent / name).read_text())

    def _remove_cgroups(self) -> None:
        for made in self._cgroups:
            folders = sorted((Path(folder) for folder, _, _ in os.walk(made)), reverse=True)
            for folder in folders:
                for _ in range(50):
                    with contextlib.suppress(FileNotFoundError, OSError):
                        folder.rmdir()
                    if not folder.exists():
                        break
                    time.sleep(0.1)  # its last processes are still dying

    def _joined(self, argv: Sequence[str]) -> list[str]:
        """ARGV, started in our cgroups."""
        script = (
            'n=$1; shift; while [ $n -gt 0 ]; do echo $$ >"$1"; shift; n=$((n-1)); done; exec "$@"'
        )
        leaf = self._leaf if self._first else "cgroup.procs"
        files = [str(made / leaf) for made in self._cgroups]
        return ["sh", "-ec", script, "sh", str(len(files)), *files, *argv]

    def run(self, host: Host, *argv: object, check: bool = True, quiet: bool = False) -> str:
        """Run ARGV in there, on HOST's network. QUIET: its output goes nowhere, since a container inherits it."""
        inside = ["nsenter", "--target", str(self._first), "--mount", "--pid", "--cgroup"]
        inside += [f"--net={host.namespace}", "--", "env", "-i", "HOME=/root", "LANG=C.UTF-8"]
        inside += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        inside += ["PODMAN_IGNORE_CGROUPSV1_WARNING=1", *map(str, argv)]
        output = subprocess.DEVNULL if quiet else subprocess.PIPE
        done = subprocess.run(
            self._joined(inside),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            timeout=900,
        )
        if check and done.returncode:
            said = f"{done.stderr or ''}{done.stdout or ''}"[-1500:]
            raise PeerFault(f"{' '.join(map(str, argv))}: status {done.returncode}: {said}")
        return done.stdout or ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()  # and with it, by --kill-child, the namespace's first process and all others
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
