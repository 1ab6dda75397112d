"""One container's cgroup, across all trees of the host.

Owning it is the rule that everything here obeys. A cgroup carries processes of whoever is in it,
and freeze and kill hit all of them, so one wrong path would take down the machine (an engine once
killed every process of the root cgroup after a restore). Hence:

- paths are checked: below a top-level cgroup whose name begins with "ckpt", no "..", no "/" at
  the end;
- `create` marks each directory it made with an extended attribute, and nothing is frozen, killed or
  removed in one that isn't marked;
- processes are only ever moved **into** our cgroups, by the caller's order.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from dataclasses import replace

from runtime.cgroups import limits, v1, v2
from runtime.cgroups.hierarchy import enable, parents, wait, walk
from runtime.cgroups.layout import Layout
from runtime.cgroups.plan import Change
from runtime.cgroups.resources import UNLIMITED, Cpu, Resources
from runtime.cgroups.stats import Stats
from runtime.errors import (
    Conflict,
    NotFound,
    NotPermitted,
    TimedOut,
    Unsupported,
    WrongState,
    from_os_error,
)

log = logging.getLogger(__name__)

# Those whose limits nearly every container has are switched on when its cgroup is made, others
# (hugetlb) when something is limited with them.
_ENABLED_AT_ONCE = ("cpu", "cpuset", "io", "memory", "pids")
_PIDS_AT_ONCE = 256  # each takes a descriptor for a moment


class Cgroup:
    """A cgroup that ckpt made, in every usable tree. See `create` and `open`."""

    def __init__(self, layout: Layout, path: str) -> None:
        self._layout = layout
        self._fs = layout.fs
        self.path = path

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r}, {self._layout.kind})"

    # ---------------------------------------------------------------- where

    def paths(self) -> dict[str, str]:
        """Directory by tree ("v2", "v1:cpu", ...)."""
        return {tree.label: tree.path(self.path) for tree in self._layout.usable}

    def enter_paths(self) -> list[str]:
        """Files that a pid is written to, to put that process here; all of them."""
        return [f"{directory}/cgroup.procs" for directory in self.paths().values()]

    def freezer_path(self) -> str:
        """The directory that `freeze` acts on, for CRIU's --freeze-cgroup. Raises Unsupported."""
        tree = self._layout.unified
        if tree is not None and self._fs.exists(f"{tree.path(self.path)}/cgroup.freeze"):
            return tree.path(self.path)
        freezer = self._layout.tree_of("freezer")
        if freezer is None:
            why = "this host has neither the freezer controller nor cgroup.freeze (Linux 5.2)"
            raise Unsupported(doing="freezing", target=self.path, why=why)
        return freezer.path(self.path)

    def exists(self) -> bool:
        """Whether it is there in at least one tree."""
        return any(self._fs.exists(directory) for directory in self.paths().values())

    # ---------------------------------------------------------------- processes

    def add(self, pid: int) -> None:
        """Move the process `pid`, all threads, here. Raises NotFound, NotPermitted, SystemFault."""
        for path in self.enter_paths():
            try:
                self._fs.write(path, str(pid))
            except OSError as error:
                target = f"process {pid} into {path}"
                raise from_os_error(error, doing="moving", target=target) from error

    def pids(self) -> list[int]:
        """Every process in it, and in cgroups made below it. Zombies aren't listed."""
        found: set[int] = set()
        for directory in self.paths().values():
            for each in walk(self._layout, directory):
                with contextlib.suppress(FileNotFoundError):
                    text = self._fs.read(f"{each}/cgroup.procs")
                    found.update(int(word) for word in text.split())
        return sorted(found - {0})  # 0: a process of a pid namespace that we aren't in

    # ---------------------------------------------------------------- limits

    def apply(self, resources: Resources) -> None:
        """Set the limits of a fresh cgroup.

        Raises Unsupported, BadInput, Conflict, NotPermitted, SystemFault.
        """
        self.require_ours("limiting")
        self.enable(resources)
        limits.apply(self._layout, self.path, Change.of(resources, Resources()))

    def update(self, wish: Resources, *, force: bool = False) -> Resources:
        """Change limits under running processes; what `wish` doesn't say stays. All or nothing.

        A memory limit below what is in use is refused with Conflict unless `force`: on v2 the
        kernel would kill to get there. Returns what the kernel has then. Raises as `apply`.
        """
        self.require_ours("updating the limits of")
        now = self.read()
        wish = _drop_burst_with_quota(wish)
        # Checks that hold for all of it together: swap >= memory, burst <= quota.
        merged = now.merged(wish)
        said = merged.to_oci()
        Resources.from_oci({key: said[key] for key in ("memory", "cpu") if key in said})
        if not force:
            self._refuse_squeeze(wish)
        self.enable(wish)
        limits.apply(self._layout, self.path, Change.of(wish, now))
        return self.read()

    def read(self) -> Resources:
        """The limits that the kernel has now; None where it has none. Devices aren't told."""
        try:
            return limits.read(self._layout, self.path)
        except FileNotFoundError as error:
            raise NotFound(
                doing="reading the limits of", target=self.path, why="there is no such cgroup"
            ) from error

    def _refuse_squeeze(self, wish: Resources) -> None:
        limit = wish.memory.limit
        used = self.stats().memory.working_set
        if limit in (None, UNLIMITED) or used is None or used <= (limit or 0):
            return
        raise Conflict(
            doing="setting memory.limit to",
            target=str(limit),
            why=f"{used} bytes are in use",
            hint="a higher limit, or force it and let the kernel kill",
        )

    def enable(self, resources: Resources) -> None:
        tree = self._layout.unified
        if tree is None:
            return
        wanted = [c for c in _ENABLED_AT_ONCE if c in tree.controllers]
        if resources.huge_pages and "hugetlb" in tree.controllers:
            wanted.append("hugetlb")
        wanted += [file.partition(".")[0] for file in resources.unified]
        enable(self._layout, self.path, [c for c in wanted if c in tree.controllers])

    # ---------------------------------------------------------------- counters

    def stats(self) -> Stats:
        """What it used so far (since it was made: a restored container starts at 0)."""
        stats = Stats()
        for each in self._layout.usable:
            directory = each.path(self.path)
            readers = (v1 if each.version == 1 else v2).STATS
            for controller in sorted(each.controllers & readers.keys()):
                with contextlib.suppress(FileNotFoundError):
                    stats = readers[controller](self._fs, directory, stats)
        tree = self._layout.unified
        if tree is not None:
            directory = tree.path(self.path)
            if self._layout.tree_of("cpuacct") is None:
                stats = v2.stats_cpu(self._fs, directory, stats)
            stats = v2.stats_pressure(self._fs, directory, stats)
        return stats

    def oom_kills(self) -> int:
        """How many processes the kernel killed here for want of memory."""
        return self.stats().memory.oom_kill or 0

    # ---------------------------------------------------------------- freeze, kill, remove

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop every process in it; returns once all are stopped.

        After `timeout` seconds it is thawed again and TimedOut raised (a task in uninterruptible
        sleep). The v2 freezer is preferred where both are: its tasks can still be killed and
        ptraced.
        """
        self.require_ours("freezing")
        directory = self.freezer_path()
        version2 = self._fs.exists(f"{directory}/cgroup.freeze")
        self._write_freezer(directory, version2, frozen=True)

        def is_frozen() -> bool:
            if version2:
                return self._fs.read_flat(f"{directory}/cgroup.events").get("frozen") == 1
            state = self._fs.read(f"{directory}/freezer.state").strip()
            if state == "FREEZING":
                # A task that forks while it is frozen can be missed; asking again catches it.
                self._write_freezer(directory, version2, frozen=True)
            return state == "FROZEN"

        if not wait(is_frozen, timeout):
            self._write_freezer(directory, version2, frozen=False)
            raise TimedOut(
                doing="freezing",
                target=self.path,
                why=f"not all of its processes stopped within {timeout:g} s; thawed again",
                hint="one may hang in the kernel: look for state D in ps",
                retry=True,
            )

    def begin_freeze(self) -> None:
        """Ask for the freeze and don't wait: who runs in it now or later stops at its next chance.

        For tasks that stand still already and must stay so when what holds them goes away.
        """
        self.require_ours("freezing")
        directory = self.freezer_path()
        version2 = self._fs.exists(f"{directory}/cgroup.freeze")
        self._write_freezer(directory, version2, frozen=True)

    def thaw(self) -> None:
        """Undo `freeze`; nothing happens if it isn't frozen."""
        self.require_ours("thawing")
        directory = self.freezer_path()
        version2 = self._fs.exists(f"{directory}/cgroup.freeze")
        self._write_freezer(directory, version2, frozen=False)

    def frozen(self) -> bool:
        """Whether every process in it is stopped by its freezer."""
        directory = self.freezer_path()
        if self._fs.exists(f"{directory}/cgroup.freeze"):
            return self._fs.read_flat(f"{directory}/cgroup.events").get("frozen") == 1
        return self._fs.read(f"{directory}/freezer.state").strip() == "FROZEN"

    def _write_freezer(self, directory: str, version2: bool, *, frozen: bool) -> None:
        try:
            if version2:
                self._fs.write(f"{directory}/cgroup.freeze", str(int(frozen)))
            else:
                state = "FROZEN" if frozen else "THAWED"
                self._fs.write(f"{directory}/freezer.state", state)
        except OSError as error:
            doing = "freezing" if frozen else "thawing"
            raise from_os_error(error, doing=doing, target=self.path) from error

    def kill(self) -> None:
        """SIGKILL every process in it, also one that forks meanwhile; their end isn't awaited.

        Nothing happens where the cgroup is gone already.
        """
        if not self.exists():
            return
        self.require_ours("killing the processes of")
        tree = self._layout.unified
        if tree is not None:
            file = f"{tree.path(self.path)}/cgroup.kill"
            if self._fs.exists(file):
                self._fs.write(file, "1")
                if wait(lambda: not self.pids(), 0.2):
                    return
        # No cgroup.kill (before 5.14, or no v2 tree), or a process that isn't in the v2 tree, or
        # one that v1 keeps frozen: that one dies when it is thawed.
        with contextlib.suppress(TimedOut, Unsupported):
            self.freeze(timeout=1.0)  # so that none forks between the list and the signal
        try:
            pids = self.pids()
            for start in range(0, len(pids), _PIDS_AT_ONCE):
                self._kill_listed(pids[start : start + _PIDS_AT_ONCE])
        finally:
            self._thaw_all()

    def _kill_listed(self, pids: list[int]) -> None:
        """A number may be given to somebody else after it was listed; a handle stays with the
        process that it was opened for. So open, list once more, and signal what is in both."""
        with contextlib.ExitStack() as handles:
            opened: dict[int, int] = {}
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    opened[pid] = os.pidfd_open(pid)
                    handles.callback(os.close, opened[pid])
            still = set(self.pids())
            for pid, handle in opened.items():
                if pid in still:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)

    def _thaw_all(self) -> None:
        """Both freezers, where there are two."""
        files = [("cgroup.freeze", "0", self._layout.unified)]
        files.append(("freezer.state", "THAWED", self._layout.tree_of("freezer")))
        for file, text, tree in files:
            if tree is not None and self._fs.exists(f"{tree.path(self.path)}/{file}"):
                self._fs.write(f"{tree.path(self.path)}/{file}", text)

    def remove(self, timeout: float = 10.0) -> None:
        """Take it away in every tree, with cgroups below it; empty parents of ours go as well.

        Waits up to `timeout` seconds for dying processes; then raises WrongState with those that
        live. Nothing happens where it is gone already.
        """
        if not self.exists():
            return
        self.require_ours("removing")

        def gone() -> bool:
            left = [d for d in self.paths().values() if not self._try_remove(d)]
            return not left

        if not wait(gone, timeout):
            left = self.pids()
            raise WrongState(
                doing="removing the cgroup",
                target=self.path,
                why=f"{len(left)} processes are in it: {', '.join(map(str, left[:8]))}"
                if left
                else "the kernel says that it is in use",
                hint="kill them first",
                retry=True,
            )
        self.remove_empty_parents()

    def _try_remove(self, directory: str) -> bool:
        """rmdir, children first. False: something is in it still."""
        try:
            for child in self._fs.subdirs(directory):
                if not self._try_remove(child):
                    return False
            self._fs.rmdir(directory)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return True
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise from_os_error(error, doing="removing the cgroup", target=directory) from error
        return True

    def remove_empty_parents(self) -> None:
        for parent in parents(self.path):
            for tree in self._layout.usable:
                directory = tree.path(parent)
                with contextlib.suppress(OSError):  # in use, or not there
                    if self._fs.marked(directory):
                        self._fs.rmdir(directory)

    def require_ours(self, doing: str) -> None:
        """Raise unless ckpt made this cgroup, in every tree that has it."""
        seen = False
        for directory in self.paths().values():
            try:
                ours = self._fs.marked(directory)
            except FileNotFoundError:
                continue
            seen = True
            if not ours:
                why = "ckpt didn't make it (it lacks our mark)"
                raise NotPermitted(doing=doing, target=directory, why=why)
        if not seen:
            raise NotFound(doing=doing, target=self.path, why="there is no such cgroup")


def _drop_burst_with_quota(wish: Resources) -> Resources:
    """Whoever lifts the quota means its burst too."""
    if wish.cpu.quota == UNLIMITED and wish.cpu.burst is None:
        cpu: Cpu = replace(wish.cpu, burst=0)
        return replace(wish, cpu=cpu)
    return wish
