"""Building a container: the file systems, then pid 1, stopped where its command would begin (see stage/first.py)."""

from __future__ import annotations

import os
import socket

from runtime import syscalls
from runtime.monitor.loop import READ
from runtime.proc import boot_ticks
from runtime.stage import first, mounts, namespaces

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from runtime.monitor.monitor import Monitor


def assemble(plan: dict[str, Any]) -> str:
    """The container's file systems in a mount namespace of ours; returns the root's mount point."""
    userns = None
    if plan["userns"]:
        userns = namespaces.user_namespace(plan["userns"]["base"], plan["userns"]["size"])
    try:
        return mounts.assemble(plan, userns)
    finally:
        if userns is not None:
            os.close(userns)


class Building:
    """Pid 1 until it executes the init; afterwards nothing of this is needed any more."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.channel: socket.socket | None = None

    def begin(self) -> None:
        monitor, plan = self._monitor, self._monitor.plan
        root = assemble(plan)
        process = plan["process"]
        roles = ["stdin"] if plan["stdin"] else []
        roles += ["stdout", "status"] if process["terminal"] else ["stdout", "stderr", "status"]
        streams = monitor.new_streams(0, roles, process["uid"], process["gid"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stage = os.fork()
        if stage == 0:
            ours.close()
            first.run(plan, root, theirs, streams.inside(terminal=process["terminal"]))
        theirs.close()
        self.channel = ours
        if plan["userns"]:
            first.hear(ours)
            namespaces.write_id_maps(stage, plan["userns"]["base"], plan["userns"]["size"])
            first.tell(ours, ok=True)
        pid = first.hear(ours)["pid"]
        monitor.init_pid = pid
        streams.close_theirs()
        monitor.add(0, monitor.main_process(streams))
        if plan["ipc_sysctls"]:
            namespaces.set_ipc_sysctls(pid, plan["ipc_sysctls"], plan["userns"])
        monitor.status.save(init_pid=pid, init_ticks=boot_ticks(pid))
        monitor.loop.watch(ours.fileno(), READ, self._on_channel)
        monitor.starter.answer(event="namespaces", pid=pid)

    def go_on(self) -> None:
        """Let pid 1 take its next step: to mount and wait, then to execute the command."""
        if self.channel is not None:
            first.tell(self.channel, ok=True)

    def _on_channel(self) -> None:
        """Pid 1 says that it is ready, or failed, or (end of file) that it executed the init."""
        monitor = self._monitor
        assert self.channel is not None
        try:
            said = first.hear(self.channel)
        except (ChildProcessError, OSError) as error:
            self._forget_channel()
            if str(error) != first.ENDED:
                monitor.status.values["reason"] = str(error)
                monitor.starter.answer(event="error", error=str(error))
            return
        if "ready" in said:
            monitor.status.save(state="created")
            monitor.starter.answer(event="created", pid=monitor.init_pid)

    def _forget_channel(self) -> None:
        if self.channel is not None:
            self._monitor.loop.forget(self.channel.fileno())
            self.channel.close()
            self.channel = None


def become_private() -> int:
    """Note the mount namespace that we were started in; `leave` goes back there."""
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def leave(outside: int) -> None:
    """Out of our mount namespace: in it, layers and volumes are mounted below what is deleted after us."""
    syscalls.setns(outside, syscalls.CLONE_NEWNS)
