"""Having CRIU restore a container as our child.

CRIU runs inside the container's cgroups and with `--restore-sibling`, so that the restored init is our child as a
built one is; its standard streams are new pipes of ours in place of the dumped ones. At its hooks CRIU asks us, and
we whoever started or took over this restore: ours are the pipes, since what is prepared for a migration must outlive
the process that prepared it.
"""

from __future__ import annotations

import os
import signal
import time

from runtime import syscalls
from runtime.monitor.building import assemble
from runtime.monitor.loop import READ
from runtime.monitor.process import Process
from runtime.proc import boot_ticks
from runtime.stage import execute, mounts

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from runtime.monitor.monitor import Monitor


class Restoring:
    """CRIU's process and its hooks, until the container runs."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._restore: dict[str, Any] = monitor.plan["restore"]
        self.criu_pid = 0
        self.waits = False
        """A hook waits for a word."""
        self.action = ""
        """The last hook that asked."""
        self.held = False
        """Prepared by a migration: its peer's end is no reason to give up."""
        self.jobs: dict[str, Any] = {}
        """Jobs that the old monitor knew, those that ended included."""
        self._answer = -1

    def begin(self) -> None:
        monitor, restore = self._monitor, self._restore
        root = assemble(monitor.plan)
        inherit, passed = self._open_streams()
        argv = [*restore["argv"], "--root", root, *inherit]
        for key in restore["keys"]:
            where = os.path.join(monitor.plan["run_dir"], "m", key)
            if not os.path.lexists(where):
                os.mkdir(where)  # a cgroup hierarchy of the dump's host that this one hasn't
            argv += ["--external", f"mnt[{key}]:{where}"]
        environment = self._open_hooks()
        pid = os.fork()
        if pid == 0:
            self._become_criu(argv, environment, passed)
        self.criu_pid = pid
        for process in monitor.processes.values():
            process.streams.close_theirs()
        monitor.status.save(state="restoring")
        monitor.starter.answer(event="criu", pid=pid)

    def _open_streams(self) -> tuple[list[str], list[int]]:
        """New pipes for every process that had some: CRIU's options, and the descriptors that they name."""
        monitor = self._monitor
        inherit: list[str] = []
        passed: list[int] = []
        for number, names in _by_job(self._restore["streams"]).items():
            spec = self._restore["processes"][str(number)]
            streams = monitor.new_streams(number, list(names), spec["uid"], spec.get("gid", 0))
            for role, name in names.items():
                inner = streams.theirs[role]
                inherit += ["--inherit-fd", f"fd[{inner}]:{name}"]
                passed.append(inner)
            if number:
                info = spec.get("info", {})
                log = monitor.job_log(number)
                monitor.add(number, Process(streams, log, terminal=spec["terminal"], info=info))
            else:
                monitor.add(0, monitor.main_process(streams))
        return inherit, passed

    def _open_hooks(self) -> dict[str, str]:
        """The pipes to runtime/criu/hook.c, and the environment that tells it of them."""
        ask_r, ask_w = os.pipe2(os.O_CLOEXEC)
        answer_r, self._answer = os.pipe2(os.O_CLOEXEC)
        self._monitor.loop.watch(ask_r, READ, lambda: self._on_hook(ask_r))
        return {
            **self._restore["env"],
            "CKPT_HOOKS": " ".join(self._restore["hooks"]),
            "CKPT_PID": str(os.getpid()),
            "CKPT_ASK": str(ask_w),
            "CKPT_ANSWER": str(answer_r),
        }

    def _on_hook(self, fd: int) -> None:
        at = time.time_ns()
        monitor = self._monitor
        for line in os.read(fd, 4096).splitlines():
            action, pid = line.decode().split()
            self.waits, self.action = True, action
            if monitor.starter not in monitor.clients and not self.held:
                self.verdict(1)
            else:
                monitor.starter.answer(event="hook", action=action, pid=int(pid), at_ns=at)

    def verdict(self, status: int) -> None:
        """The word that the hook waits for: 0 to go on; else CRIU kills what it restored."""
        self.waits = False
        os.write(self._answer, b"%d\n" % status)

    def alive(self) -> bool:
        """Whether CRIU is. Its end may be known to the kernel, and not to us yet."""
        return bool(self.criu_pid) and not os.waitid(
            os.P_PID, self.criu_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        )

    def starter_gone(self) -> None:
        if self.waits and not self.held:
            self.verdict(1)

    def _become_criu(self, argv: list[str], env: dict[str, str], passed: list[int]) -> None:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            mounts.join_cgroups(self._monitor.plan["cgroup_procs"])
            # CRIU with --manage-cgroups=ignore makes no cgroup namespace: the tasks inherit this one.
            syscalls.unshare(self._monitor.plan["clone_flags"] & syscalls.CLONE_NEWCGROUP)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            out = os.open(self._restore["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 2)
            syscalls.close_all_but(sorted({0, 1, 2, *passed}))
            for fd in passed:
                os.set_inheritable(fd, True)
            execute.reset_signals()
            os.execve(argv[0], argv, env)
        finally:
            os._exit(127)

    def on_end(self, status: int) -> None:
        """CRIU has ended, well or not."""
        monitor, restore = self._monitor, self._restore
        self.criu_pid = 0
        code = os.waitstatus_to_exitcode(status)
        try:
            if code:
                raise ValueError
            with open(restore["pidfile"]) as file:
                pid = int(file.read())
            ticks = boot_ticks(pid)
        except (OSError, ValueError):
            monitor.fail(f"criu restore ended with status {code}")
            return
        monitor.init_pid = pid
        monitor.status.save(
            state="running",
            init_pid=pid,
            init_ticks=ticks,
            started_ns=restore["started_ns"] or time.time_ns(),
            main_pid=restore["main_pid"],
            jobs=self.jobs | {str(n): p.info for n, p in monitor.processes.items() if n},
        )
        monitor.starter.answer(event="restored", pid=pid)


def _by_job(streams: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    jobs: dict[int, dict[str, str]] = {}
    for entry in streams:
        jobs.setdefault(entry["job"], {})[entry["role"]] = entry["name"]
    return jobs
