"""The monitor: parent of a container's init, holder of its streams, reaper, keeper of its exit status.

One small process per container that outlives the CLI. It is started with a launch plan and a socket to its starter,
builds the container (building.py) or has CRIU restore it (restoring.py), and then serves the control socket
(requests.py) until the init is gone. At the end it becomes (by exec) `ckpt internal ended ID`, which frees what the
container held or starts it again as its restart policy says; so nothing heavy is ever resident.

It must stay small: no third-party package, no typing, no dataclasses here or in what this imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from functools import partial

from runtime import syscalls
from runtime.monitor import building, requests
from runtime.monitor.building import Building
from runtime.monitor.clients import Client
from runtime.monitor.logs import Log
from runtime.monitor.loop import READ, WRITE, Loop
from runtime.monitor.process import Process
from runtime.monitor.restoring import Restoring
from runtime.monitor.status import STARTER_GONE, StatusFile, decode
from runtime.monitor.streams import Streams
from runtime.packets import past_reset
from runtime.stage import execute, first

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

STARTED = 0xFFFFFFFF
SOCKET = "ctl"
DONE = b'{"op": "done"}'
CARE = 120.0
"""Seconds that a caretaker has."""
LINGER = 60.0
"""Seconds that a follower which reads slowly has for the output that is left when the container has ended."""


class Monitor:
    def __init__(self, plan: dict[str, Any], starter: socket.socket, outside: int) -> None:
        self.plan = plan
        self.outside = outside
        """The mount namespace that we were started in."""
        self.loop = Loop()
        self.status = StatusFile(plan["status_path"])
        self.starter = Client(starter)
        self.clients: list[Client] = [self.starter]
        self.processes: dict[int, Process] = {}  # job 0 is the container's own process
        self.init_pid = 0
        self.building: Building | None = None
        self.restoring: Restoring | None = None
        self.caretaker: Client | None = None
        """Frees what is left at the end, instead of our `ended` command."""
        self.environment: dict[str, str] = dict(plan["environment"])
        """Of the processes that we start for what is beyond us; a dump adds how it reaches other hosts."""
        self.quiesced: dict[str, Any] | None = None
        """A dump is under way; its reason becomes that of the end."""

    # ---- the loop

    def run(self) -> None:
        """From the plan to the container's end."""
        self._prepare_signals()
        self._listen()
        self.loop.watch(self.starter.sock.fileno(), READ, lambda: self.on_client(self.starter))
        try:
            if "restore" in self.plan:
                self.restoring = Restoring(self)
                self.restoring.begin()
            else:
                self.building = Building(self)
                self.building.begin()
        except (OSError, ChildProcessError) as error:
            self.fail(first.explain(error, "preparing the container"))
        while self.status.state != "stopped":
            self.loop.once()
            self._update_interest()
        self._say_farewell()

    def _prepare_signals(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self.loop.watch(read, READ, lambda: self.on_child(read))

    def _listen(self) -> None:
        # Through the directory's descriptor: a socket's path is limited to 107 bytes.
        directory = os.open(self.plan["run_dir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{directory}/{SOCKET}"
        if os.path.lexists(path):
            os.unlink(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.bind(path)
        os.chmod(path, 0o600)
        server.listen(16)
        os.close(directory)
        self._server = server
        self.loop.watch(server.fileno(), READ, self._on_connect)

    def _on_connect(self) -> None:
        client = Client(self._server.accept()[0])
        self.clients.append(client)
        self.loop.watch(client.sock.fileno(), READ, lambda: self.on_client(client))

    def _update_interest(self) -> None:
        """Slow readers and writers: poll for output only where some waits, for input only where it fits."""
        for client in self.clients:
            self.loop.change(client.sock.fileno(), READ | (WRITE if client.wants_to_write else 0))
        for process in self.processes.values():
            for role in ("stdout", "stderr"):
                fd = process.streams.ours.get(role)
                if fd is not None:
                    self.loop.change(fd, 0 if process.held_up else READ)
            fd = process.streams.ours.get("stdin")
            if fd is not None and process.wants_input and not self.loop.watched(fd):
                self.loop.watch(fd, WRITE, partial(self._on_writable, fd, process))

    def _on_writable(self, fd: int, process: Process) -> None:
        self.loop.forget(fd)
        process.flush_input()

    def _say_farewell(self) -> None:
        """Those who have not read everything yet get the rest from a child: we have other things to do."""
        self._server.close()  # who connects too late is told so at once
        slow = [client for client in self.clients if client.wants_to_write]
        if slow and os.fork() == 0:
            try:
                syscalls.close_all_but([client.sock.fileno() for client in slow])
                signal.alarm(int(LINGER))
                for client in slow:
                    client.sock.setblocking(True)
                    client.flush()
            finally:
                os._exit(0)
        for client in self.clients:
            if client is not self.caretaker:
                client.close()

    def is_cared_for(self) -> bool:
        """After the end: whether the caretaker has freed everything. If it dies before it says so, it has not."""
        if self.caretaker not in self.clients or self.caretaker is None:
            return False
        sock = self.caretaker.sock
        sock.settimeout(CARE)
        while True:
            try:
                packet = past_reset(sock.recv, 1 << 16)
            except OSError:
                return False
            if packet == DONE or not packet:
                return packet == DONE

    # ---- processes and their streams

    def new_streams(self, job: int, roles: list[str], uid: int, gid: int) -> Streams:
        base = self.plan["userns"]["base"] if self.plan["userns"] else 0
        return Streams(job, roles, base + uid, base + gid)

    def main_process(self, streams: Streams) -> Process:
        log = Log(self.plan["log_path"], self.plan["log_max_bytes"], self.plan["log_files"])
        return Process(streams, log, terminal=self.plan["process"]["terminal"], info={})

    def job_log(self, number: int) -> Log:
        os.makedirs(self.plan["jobs_dir"], exist_ok=True)
        path = os.path.join(self.plan["jobs_dir"], f"{number}.log")
        return Log(path, self.plan["log_max_bytes"], self.plan["log_files"])

    def add(self, number: int, process: Process) -> None:
        """From now on this process's output is read and its end is heard of."""
        self.processes[number] = process
        for role in ("stdout", "stderr"):
            fd = process.streams.ours.get(role)
            if fd is not None:
                self.loop.watch(fd, READ, partial(self._on_output, process, role, fd))
        fd = process.streams.ours.get("status")
        if fd is not None:
            self.loop.watch(fd, READ, partial(self.on_status, fd))

    def number_of(self, process: Process) -> int:
        """Its job number, which is its pid inside; 0 for the container's own process."""
        for number, other in self.processes.items():
            if other is process:
                return number
        raise ProcessLookupError(3, "no such process")

    def _on_output(self, process: Process, role: str, fd: int) -> None:
        if not process.read(role):
            self.loop.forget(fd)
            process.streams.close(role)
            if process.ended is not None:
                self._finish_job(self.number_of(process), process.ended)

    # ---- events

    def on_client(self, client: Client) -> None:
        client.flush()
        packet = client.receive()
        if packet is None:
            self._drop(client)
        elif packet:
            requests.handle(self, client, packet)

    def _drop(self, client: Client) -> None:
        self.loop.forget(client.sock.fileno())
        self.clients.remove(client)
        for number, process in self.processes.items():
            if client in process.clients:
                process.clients.remove(client)
                if number and process.log is None:
                    process.log = self.job_log(number)  # nobody listens any more: keep it
        client.close()
        if self.quiesced is not None and self.quiesced["client"] is client:
            self.quiesced = None
            client.unfinished = True
        if client.unfinished:
            self._on_abandoned()
        if client is self.starter:
            # A starter that is gone before its container is made leaves nothing half made behind.
            if self.status.state == "creating":
                self.fail(STARTER_GONE)
            elif self.restoring is not None:
                self.restoring.starter_gone()

    def _on_abandoned(self) -> None:
        """Whoever dumped is gone without a word. Its end makes CRIU give up; what else there is to undo or to finish
        (ckpt/ops/heal.py) is for a process that knows more than we do."""
        if os.fork() == 0:
            try:
                building.leave(self.outside)
                execute.reset_signals()
                argv = self.plan["abandoned"]
                os.execve(argv[0], argv, self.environment)
            finally:
                os._exit(127)

    def on_status(self, fd: int) -> None:
        """Records of two u32 from the static init: see runtime/init/init.c."""
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        if not data:
            self.loop.forget(fd)
            return
        for at in range(0, len(data) - 7, 8):
            pid = int.from_bytes(data[at : at + 4], sys.byteorder)
            status = int.from_bytes(data[at + 4 : at + 8], sys.byteorder)
            if status == STARTED:
                self.building = None
                self.status.save(state="running", started_ns=time.time_ns(), main_pid=pid)
                self.starter.answer(event="started", pid=pid)
            elif pid == 0:
                self._on_not_executed(status)
            elif pid in self.processes:
                self._on_job_end(pid, status)

    def _on_not_executed(self, errno: int) -> None:
        command = self.plan["process"]["args"][0]
        reason = f"cannot execute {command}: {os.strerror(errno)}"
        self.status.values["reason"] = reason
        code = 127 if errno in (2, 20) else 126  # ENOENT, ENOTDIR: as a shell has it
        self.starter.answer(event="error", error=reason, code=code)

    def _on_job_end(self, pid: int, status: int) -> None:
        process = self.processes[pid]
        process.ended = decode(status)
        # The keeper of its terminal passes on what it wrote last, and then ends, since the terminal is hung up.
        if not (process.terminal and "stdout" in process.streams.ours):
            self._finish_job(pid, process.ended)

    def _finish_job(self, pid: int, ended: dict[str, Any]) -> None:
        process = self.processes[pid]
        for fd in process.streams.ours.values():
            self.loop.forget(fd)
        process.end(ended)
        del self.processes[pid]
        self.status.jobs.setdefault(str(pid), {}).update(ended, ended_ns=time.time_ns())
        self.status.save()
        self._tell_waiters(pid, ended)

    def on_child(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.restoring is not None and pid == self.restoring.criu_pid:
                self.restoring.on_end(status)
            elif pid == self.init_pid:
                self._on_end(status)

    def _on_end(self, status: int) -> None:
        """The init is gone, and with it every process of its pid namespace."""
        status_fd = self.processes[0].streams.ours.get("status")
        if status_fd is not None:
            self.on_status(status_fd)  # the ends of jobs that it reported last
        ended = decode(status)
        killed = decode(signal.SIGKILL)
        for number, process in list(self.processes.items()):
            for fd in process.streams.ours.values():
                self.loop.forget(fd)
            if number:
                its = process.ended or killed
                self.status.jobs.setdefault(str(number), {}).update(its, ended_ns=time.time_ns())
                process.end(its)
                self._tell_waiters(number, its)
        reason = self.status.values["reason"]
        if self.quiesced is not None and ended["signal"] == signal.SIGKILL:
            reason = self.quiesced["reason"]
        oom = self._oom_kills() > self.plan["oom_before"]
        final = {**ended, "oom_killed": oom, "reason": reason}
        self.processes[0].end(final)
        self.status.save(state="stopped", ended_ns=time.time_ns(), init_pid=0, **final)
        self._tell_waiters(0, final)

    def fail(self, why: str) -> None:
        """Give up before the container ran."""
        self.starter.answer(event="error", error=why)
        if self.init_pid:
            os.kill(self.init_pid, signal.SIGKILL)
            os.waitpid(self.init_pid, 0)
        for process in self.processes.values():
            process.streams.close_all()
        # unborn: nobody but its starter knows of what was being restored.
        unborn = self.restoring is not None
        self.status.save(
            state="stopped", reason=why, ended_ns=time.time_ns(), init_pid=0, unborn=unborn
        )

    def _tell_waiters(self, number: int, ended: dict[str, Any]) -> None:
        for client in self.clients:
            if client.waits_for == number:
                client.answer(ended=ended)

    def _oom_kills(self) -> int:
        total = 0
        for path in self.plan["oom_files"]:
            try:
                with open(path) as file:
                    for line in file:
                        if line.startswith("oom_kill "):
                            total += int(line.split()[1])
            except OSError:
                pass
        return total


def run(plan_path: str, starter_fd: int) -> None:
    """The monitor's whole life. At its end it becomes the plan's `ended` command, unless somebody cares."""
    with open(plan_path) as file:
        plan = json.load(file)
    os.setsid()
    os.chdir("/")
    if plan["monitor_procs"]:
        # Out of the starter's cgroup, with which systemd would end us: see runtime/cgroups/monitors.py.
        with contextlib.suppress(OSError), open(plan["monitor_procs"], "w") as file:
            file.write("0")
    with open("/proc/self/comm", "w") as file:
        file.write(f"ckpt-{plan['id'][:8]}")
    starter = socket.socket(fileno=starter_fd)
    outside = building.become_private()
    monitor = Monitor(plan, starter, outside)
    monitor.run()
    building.leave(outside)
    if monitor.is_cared_for():
        return
    # What is left (network, cgroups, restart policy) needs more than we have loaded.
    os.execve(plan["ended"][0], plan["ended"], monitor.environment)
