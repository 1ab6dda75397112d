"""The monitor: parent of a container's init, holder of its streams, reaper, keeper of its exit status.

One small process per container that outlives the CLI. It is started with the path of the launch plan and the
descriptor of a socket to its starter, builds the container or has CRIU restore it, and then serves the control socket
until the init is gone. At the end it becomes (by exec) `ckpt internal ended ID`, which frees what the container held
or starts it again as its restart policy says; so nothing heavy is ever resident.

Everything happens in one poll loop in one thread: children are forked without fear of locks.
"""

from __future__ import annotations

import os
import sys

if (
    __name__ == "__main__"
):  # started by path with -I -S: no site-packages, nothing of the environment
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import json
import select
import signal
import socket
import time

from runtime import syscalls
from runtime.monitor.clients import Client
from runtime.monitor.logs import Log
from runtime.monitor.process import Process
from runtime.monitor.streams import Streams
from runtime.stage import execute, first, job, mounts, namespaces

STARTED = 0xFFFFFFFF
MAX_JOBS = 1024
SOCKET = "ctl"


def boot_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid, a name that is never used twice."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


class Monitor:
    def __init__(self, plan: dict, starter: socket.socket) -> None:
        self.plan = plan
        self.starter = Client(starter)
        self.poll = select.poll()
        self.handlers: dict[int, object] = {}
        self.init_pid = 0
        self.criu_pid = 0
        self.channel: socket.socket | None = None  # to pid 1 until it executes the init
        self.processes: dict[int, Process] = {}  # job 0 is the container's own process
        self.clients: list[Client] = [self.starter]
        self.quiesced: dict | None = None  # a dump is under way; its reason becomes that of the end
        self.hook_answer = -1  # where the hook of a restoring CRIU waits for our word
        self.hook_waits = False
        self.held = False  # prepared by a migration: its peer's end is no reason to give up
        self.state: dict = {
            "state": "creating",
            "monitor_pid": os.getpid(),
            "monitor_ticks": boot_ticks(os.getpid()),
            "init_pid": 0,
            "init_ticks": 0,
            "started_ns": 0,
            "ended_ns": 0,
            "exit_code": None,
            "signal": None,
            "oom_killed": False,
            "reason": "",
            "main_pid": 0,
            "jobs": {},
        }

    # ---- state on disk: written here and nowhere else

    def save(self, **changes: object) -> None:
        self.state.update(changes)
        path = self.plan["status_path"]
        temporary = f"{path}.new"
        with open(temporary, "w") as file:
            json.dump(self.state, file)
            if self.state["state"] in ("stopped", "running"):
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)

    # ---- the loop

    def watch(self, fd: int, events: int, handler: object) -> None:
        self.poll.register(fd, events)
        self.handlers[fd] = handler

    def forget(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def run(self) -> int:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.prctl(syscalls.PR_SET_NAME, _name(self.plan["id"]))
        self.watch(read, select.POLLIN, lambda: self.on_child(read))
        self.listen()
        self.watch(self.starter.sock.fileno(), select.POLLIN, lambda: self.on_client(self.starter))
        try:
            self.begin()
        except (OSError, ChildProcessError) as error:
            self.fail(first.explain(error, "preparing the container"))
        while self.state["state"] != "stopped":
            for fd, _ in self.poll.poll():
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler()  # type: ignore[operator]
            self.update_interest()
        for client in self.clients:
            client.sock.setblocking(True)
            client.sock.settimeout(2)
            client.flush()
            client.close()
        return 0

    def listen(self) -> None:
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
        self.watch(server.fileno(), select.POLLIN, lambda: self.on_connect(server))

    def on_connect(self, server: socket.socket) -> None:
        client = Client(server.accept()[0])
        self.clients.append(client)
        self.watch(client.sock.fileno(), select.POLLIN, lambda: self.on_client(client))

    def update_interest(self) -> None:
        """Slow readers and writers: poll for output only where some waits, for input only where it fits."""
        for client in self.clients:
            events = select.POLLIN | (select.POLLOUT if client.wants_to_write else 0)
            self.poll.modify(client.sock.fileno(), events)
        for process in self.processes.values():
            for role in ("stdout", "stderr"):
                fd = process.streams.ours.get(role)
                if fd in self.handlers:
                    self.poll.modify(fd, 0 if process.held_up else select.POLLIN)
            fd = process.streams.ours.get("stdin")
            if fd is not None and process.wants_input and fd not in self.handlers:
                self.watch(fd, select.POLLOUT, lambda fd=fd, p=process: self.on_writable(fd, p))

    def on_writable(self, fd: int, process: Process) -> None:
        self.forget(fd)
        process.flush_input()

    # ---- beginning: build, or have CRIU restore

    def begin(self) -> None:
        userns = None
        if self.plan["userns"]:
            userns = namespaces.user_namespace(
                self.plan["userns"]["base"], self.plan["userns"]["size"]
            )
        root = mounts.assemble(self.plan, userns)
        if userns is not None:
            os.close(userns)
        if "restore" in self.plan:
            self.begin_restore(root)
        else:
            self.begin_create(root)

    def new_streams(self, job_id: int, roles: list[str], uid: int) -> Streams:
        base = self.plan["userns"]["base"] if self.plan["userns"] else 0
        return Streams(job_id, roles, base + uid)

    def add(self, number: int, process: Process) -> None:
        self.processes[number] = process
        for role in ("stdout", "stderr"):
            fd = process.streams.ours.get(role)
            if fd is not None:
                self.watch(fd, select.POLLIN, lambda r=role, f=fd: self.on_output(process, r, f))
        fd = process.streams.ours.get("status")
        if fd is not None:
            self.watch(fd, select.POLLIN, lambda f=fd: self.on_status(f))

    def main_process(self, streams: Streams) -> Process:
        log = Log(self.plan["log_path"], self.plan["log_max_bytes"], self.plan["log_files"])
        return Process(streams, log, terminal=self.plan["process"]["terminal"], info={})

    def begin_create(self, root: str) -> None:
        process = self.plan["process"]
        roles = ["stdin"] if self.plan["stdin"] else []
        roles += ["stdout", "status"] if process["terminal"] else ["stdout", "stderr", "status"]
        streams = self.new_streams(0, roles, process["uid"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stage = os.fork()
        if stage == 0:
            first.run(self.plan, root, theirs, streams.inside(terminal=process["terminal"]))
        theirs.close()
        self.channel = ours
        if self.plan["userns"]:
            first.hear(ours)
            namespaces.write_id_maps(
                stage, self.plan["userns"]["base"], self.plan["userns"]["size"]
            )
            first.tell(ours, ok=True)
        self.init_pid = first.hear(ours)["pid"]
        streams.close_theirs()
        self.add(0, self.main_process(streams))
        self.save(init_pid=self.init_pid, init_ticks=boot_ticks(self.init_pid))
        self.watch(ours.fileno(), select.POLLIN, self.on_channel)
        self.starter.answer(event="namespaces", pid=self.init_pid)

    def on_channel(self) -> None:
        """Pid 1 says that it is ready, or failed, or (end of file) that it executed the init."""
        assert self.channel is not None
        try:
            first.hear(self.channel)
        except ChildProcessError as error:
            failed = str(error) != "the other side ended without a word"
            if failed:
                self.state["reason"] = str(error)
                self.starter.answer(event="error", error=str(error))
            self.forget(self.channel.fileno())
            self.channel.close()
            self.channel = None
        else:
            self.save(state="created")
            self.starter.answer(event="created", pid=self.init_pid)

    def begin_restore(self, root: str) -> None:
        """CRIU restores the init as our child (--restore-sibling), on our streams, inside the container's cgroups."""
        restore = self.plan["restore"]
        inherit: list[str] = []
        passed: list[int] = []
        for number, names in _by_job(restore["streams"]).items():
            spec = restore["processes"][str(number)]
            streams = self.new_streams(number, list(names), spec["uid"])
            for role, name in names.items():
                inner = streams.theirs[role]
                inherit += ["--inherit-fd", f"fd[{inner}]:{name}"]
                passed.append(inner)
            log = None
            if number:
                log = self.job_log(number)
            process = Process(streams, log, terminal=spec["terminal"], info=spec.get("info", {}))
            if number == 0:
                process = self.main_process(streams)
            self.add(number, process)
        environment = self.open_hooks(restore)
        argv = [*restore["argv"], "--root", root, *inherit]
        for key in restore["keys"]:
            where = os.path.join(self.plan["run_dir"], "m", key)
            if not os.path.lexists(where):
                os.mkdir(where)  # a cgroup hierarchy of the dump's host that this one hasn't
            argv += ["--external", f"mnt[{key}]:{where}"]
        pid = os.fork()
        if pid == 0:
            self.become_criu(argv, {**restore, "env": environment}, passed)
        self.criu_pid = pid
        for process in self.processes.values():
            process.streams.close_theirs()
        self.save(state="restoring")
        self.starter.answer(event="criu", pid=pid)

    def open_hooks(self, restore: dict) -> dict:
        """CRIU's hooks ask us (runtime/criu/hook.sh), and we whoever started or took over this restore.

        Ours are the pipes, since what is prepared for a migration must outlive the process that prepared it.
        """
        ask_r, ask_w = os.pipe2(os.O_CLOEXEC)
        answer_r, self.hook_answer = os.pipe2(os.O_CLOEXEC)
        self.watch(ask_r, select.POLLIN, lambda: self.on_hook(ask_r))
        return {
            **restore["env"],
            "CKPT_HOOKS": " ".join(restore["hooks"]),
            "CKPT_PID": str(os.getpid()),
            "CKPT_ASK": str(ask_w),
            "CKPT_ANSWER": str(answer_r),
        }

    def on_hook(self, fd: int) -> None:
        at = time.time_ns()
        for line in os.read(fd, 4096).splitlines():
            action, pid = line.decode().split()
            self.hook_waits = True
            if self.starter not in self.clients and not self.held:
                self.verdict(1)
            else:
                self.starter.answer(event="hook", action=action, pid=int(pid), at_ns=at)

    def verdict(self, status: int) -> None:
        self.hook_waits = False
        os.write(self.hook_answer, b"%d\n" % status)

    def do_hold(self, client: Client, request: dict) -> None:
        """What is restored waits for a word, whoever brings it, and outlives who prepared it."""
        self.held = True
        client.answer(ok=True)

    def do_take_over(self, client: Client, request: dict) -> None:
        """Recovery: from now on this client is told what happens, and gives the word."""
        self.starter = client
        client.answer(held=self.held, waits=self.hook_waits, state=self.state["state"])

    def do_verdict(self, client: Client, request: dict) -> None:
        if not self.hook_waits:
            client.answer(error="no hook waits for a word")
        else:
            self.verdict(request["status"])

    def become_criu(self, argv: list[str], restore: dict, passed: list[int]) -> None:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            mounts.join_cgroups(self.plan["cgroup_procs"])
            # CRIU with --manage-cgroups=ignore makes no cgroup namespace: the tasks inherit this one.
            syscalls.unshare(syscalls.CLONE_NEWCGROUP)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            out = os.open(restore["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 2)
            syscalls.close_all_but(sorted({0, 1, 2, *passed}))
            for fd in passed:
                os.set_inheritable(fd, True)
            execute.reset_signals()
            os.execve(argv[0], argv, restore["env"])
        finally:
            os._exit(127)

    def on_restored(self, status: int) -> None:
        self.criu_pid = 0
        restore = self.plan["restore"]
        code = os.waitstatus_to_exitcode(status)
        pid = 0
        if code == 0:
            try:
                with open(restore["pidfile"]) as file:
                    pid = int(file.read())
                ticks = boot_ticks(pid)
            except (OSError, ValueError):
                pid = 0
        if not pid:
            self.fail(f"criu restore ended with status {code}")
            return
        self.init_pid = pid
        jobs = {str(n): p.info for n, p in self.processes.items() if n}
        self.save(
            state="running",
            init_pid=pid,
            init_ticks=ticks,
            started_ns=restore["started_ns"] or time.time_ns(),
            main_pid=restore["main_pid"],
            jobs=jobs,
        )
        self.starter.answer(event="restored", pid=pid)

    def fail(self, why: str) -> None:
        self.starter.answer(event="error", error=why)
        if self.init_pid:
            os.kill(self.init_pid, signal.SIGKILL)
            os.waitpid(self.init_pid, 0)
        for process in self.processes.values():
            process.streams.close_all()
        self.save(state="stopped", reason=why, ended_ns=time.time_ns(), init_pid=0)

    # ---- events

    def on_output(self, process: Process, role: str, fd: int) -> None:
        if not process.read(role):
            self.forget(fd)
            process.streams.close(role)

    def on_status(self, fd: int) -> None:
        """Records of two u32 from the static init: see runtime/init/init.c."""
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        if not data:
            self.forget(fd)
            return
        for at in range(0, len(data) - 7, 8):
            pid = int.from_bytes(data[at : at + 4], sys.byteorder)
            status = int.from_bytes(data[at + 4 : at + 8], sys.byteorder)
            if status == STARTED:
                self.save(state="running", started_ns=time.time_ns(), main_pid=pid)
                self.starter.answer(event="started", pid=pid)
            elif pid == 0:
                text = os.strerror(status)
                reason = f"cannot execute {self.plan['process']['args'][0]}: {text}"
                self.state["reason"] = reason
                self.starter.answer(event="error", error=reason, errno=status)
            elif pid in self.processes and pid != 0:
                self.job_ended(pid, status)

    def job_ended(self, pid: int, status: int) -> None:
        process = self.processes[pid]
        for fd in process.streams.ours.values():
            self.forget(fd)
        ended = _decode(status)
        process.end(ended)
        del self.processes[pid]
        self.state["jobs"].setdefault(str(pid), {}).update(ended, ended_ns=time.time_ns())
        self.save()
        self.tell_waiters(pid, ended)

    def on_child(self, fd: int) -> None:
        try:
            os.read(fd, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.criu_pid:
                self.on_restored(status)
            elif pid == self.init_pid:
                self.on_end(status)

    def on_end(self, status: int) -> None:
        """The init is gone, and with it every process of its pid namespace."""
        status_fd = self.processes[0].streams.ours.get("status")
        if status_fd is not None:
            self.on_status(status_fd)
        ended = _decode(status)
        for number, process in list(self.processes.items()):
            for fd in process.streams.ours.values():
                self.forget(fd)
            if number:
                self.state["jobs"].setdefault(str(number), {}).update(
                    _decode(9), ended_ns=time.time_ns()
                )
                process.end(_decode(9))
                self.tell_waiters(number, _decode(9))
        reason = self.state["reason"]
        if self.quiesced is not None and ended["signal"] == signal.SIGKILL:
            reason = self.quiesced["reason"]
        oom = self.oom_kills() > self.plan["oom_before"]
        final = {**ended, "oom_killed": oom, "reason": reason}
        self.processes[0].end(final)
        self.save(state="stopped", ended_ns=time.time_ns(), init_pid=0, **final)
        self.tell_waiters(0, final)

    def tell_waiters(self, number: int, ended: dict) -> None:
        for client in self.clients:
            if client.waits_for == number:
                client.answer(ended=ended)

    def oom_kills(self) -> int:
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

    # ---- requests

    def on_client(self, client: Client) -> None:
        client.flush()
        packet = client.receive()
        if packet is None:
            self.drop(client)
        elif packet.startswith(b"{"):
            try:
                request = json.loads(packet)
                handler = getattr(self, "do_" + REQUESTS[request["op"]])
            except (ValueError, KeyError):
                client.answer(error="unknown request")
                return
            try:
                handler(client, request)
            except (OSError, ChildProcessError, KeyError) as error:
                client.answer(error=first.explain(error, request["op"]))
        elif packet and client.attached is not None:
            process = self.processes.get(client.attached)
            if process is not None:
                self.on_input(process, packet)

    def drop(self, client: Client) -> None:
        self.forget(client.sock.fileno())
        self.clients.remove(client)
        for number, process in self.processes.items():
            if client in process.clients:
                process.clients.remove(client)
                if number and process.log is None:
                    process.log = self.job_log(number)  # nobody listens any more: keep it
        client.close()
        if self.quiesced is not None and self.quiesced["client"] is client:
            self.quiesced = None  # its end makes CRIU give up, and the container runs on
        # A starter that is gone before it said "start" leaves nothing half made behind.
        if client is self.starter and self.state["state"] == "creating":
            self.fail("the starter ended")
        if client is self.starter and self.hook_waits and not self.held:
            self.verdict(1)  # CRIU kills what it restored

    def on_input(self, process: Process, packet: bytes) -> None:
        kind, data = packet[:1], packet[1:]
        if kind == b"i":
            process.feed(data)
        elif kind == b"k":
            self.signal_process(process, int(data))
        elif kind == b"w":
            rows, columns = (int(part) for part in data.split(b","))
            self.resize(process, rows, columns)

    def inner_pid(self, process: Process) -> int:
        """The pid, inside, of what a signal for this process should reach."""
        for number, other in self.processes.items():
            if other is process:
                return number or 1
        raise ProcessLookupError(3, "no such process")

    def signal_process(self, process: Process, number: int) -> None:
        inner = self.inner_pid(process)
        if inner == 1:
            os.kill(self.init_pid, number)
        else:
            _in_pid_namespace(self.init_pid, lambda: os.kill(inner, number))

    def resize(self, process: Process, rows: int, columns: int) -> None:
        """Set the size of a terminal whose both ends are inside: its master is the keeper's descriptor."""
        import fcntl
        import struct
        import termios

        inner = self.inner_pid(process)
        keeper = self.init_pid if inner == 1 else _outer_pid(self.init_pid, inner)
        for name in os.listdir(f"/proc/{keeper}/fd"):
            try:
                if os.readlink(f"/proc/{keeper}/fd/{name}").endswith("/ptmx"):
                    pidfd = os.pidfd_open(keeper)
                    try:
                        master = syscalls.pidfd_getfd(pidfd, int(name))
                    finally:
                        os.close(pidfd)
                    try:
                        size = struct.pack("4H", rows, columns, 0, 0)
                        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
                    finally:
                        os.close(master)
                    return
            except OSError:
                continue

    def do_go(self, client: Client, request: dict) -> None:
        """The network is plugged in: pid 1 may mount and wait."""
        assert self.channel is not None
        first.tell(self.channel, ok=True)

    def do_start(self, client: Client, request: dict) -> None:
        if self.state["state"] != "created" or self.channel is None:
            client.answer(error=f"the container is {self.state['state']}, not created")
            return
        self.starter = client  # who asks to start is told what comes of it
        first.tell(self.channel, ok=True)

    def do_state(self, client: Client, request: dict) -> None:
        client.answer(**self.state)

    def do_kill(self, client: Client, request: dict) -> None:
        number = request.get("job", 0)
        if self.criu_pid and not self.init_pid:
            os.kill(self.criu_pid, signal.SIGKILL)
        elif number:
            self.signal_process(self.processes[number], request["signal"])
        else:
            os.kill(self.init_pid, request["signal"])
        client.answer(ok=True)

    def do_wait(self, client: Client, request: dict) -> None:
        number = request.get("job", 0)
        if number and number not in self.processes:
            done = self.state["jobs"].get(str(number))
            client.answer(**({"ended": done} if done else {"error": f"no job {number}"}))
            return
        client.waits_for = number

    def do_attach(self, client: Client, request: dict) -> None:
        number = request.get("job", 0)
        process = self.processes.get(number)
        if process is None:
            client.answer(error=f"no job {number}")
            return
        client.attached = number
        client.answer(attached=number, terminal=process.terminal)
        process.clients.append(client)

    def do_exec(self, client: Client, request: dict) -> None:
        if self.quiesced is not None:
            client.answer(error="the container is being dumped; try again")
            return
        if self.state["state"] != "running":
            client.answer(error=f"the container is {self.state['state']}, not running")
            return
        if len(self.processes) > MAX_JOBS:
            client.answer(error=f"{MAX_JOBS} jobs are running already")
            return
        process = request["process"]
        roles = ["stdin"] if request["stdin"] else []
        roles += ["stdout"] if process["terminal"] else ["stdout", "stderr"]
        streams = self.new_streams(0, roles, process["uid"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        helper = os.fork()
        if helper == 0:
            inside = streams.inside(terminal=process["terminal"])
            job.run(
                self.init_pid,
                {**process, "cgroup_procs": self.plan["cgroup_procs"]},
                theirs,
                inside,
            )
        theirs.close()
        streams.close_theirs()
        code = 126
        try:
            ours.settimeout(20)
            pid = first.hear(ours)["pid"]
            streams.job = pid
            # Register before the exec: the end of a quick job may be reported at once.
            info = {
                "args": process["args"],
                "terminal": process["terminal"],
                "uid": process["uid"],
                "started_ns": time.time_ns(),
            }
            log = None if request["attach"] else self.job_log(pid)
            started = Process(streams, log, terminal=process["terminal"], info=info)
            data = ours.recv(1 << 16)
            if data:
                code = json.loads(data).get("code", 126)
                raise ChildProcessError(json.loads(data)["error"])
        except (ChildProcessError, OSError) as error:
            streams.close_all()
            client.answer(error=str(error), code=code)
            return
        finally:
            ours.close()
        self.add(pid, started)
        self.state["jobs"][str(pid)] = info
        self.forget_old_jobs()
        self.save()
        client.answer(job=pid, terminal=process["terminal"])
        if request["attach"]:
            client.attached = pid
            started.clients.append(client)

    def forget_old_jobs(self) -> None:
        jobs = self.state["jobs"]
        ended = [name for name, info in jobs.items() if "ended_ns" in info]
        for name in ended[: max(0, len(ended) - 100)]:
            del jobs[name]

    def job_log(self, number: int) -> Log:
        os.makedirs(self.plan["jobs_dir"], exist_ok=True)
        path = os.path.join(self.plan["jobs_dir"], f"{number}.log")
        return Log(path, self.plan["log_max_bytes"], self.plan["log_files"])

    def do_quiesce(self, client: Client, request: dict) -> None:
        """A dump begins: no new jobs; the answer names the pipes that the checkpoint must remember."""
        if self.state["state"] != "running":
            client.answer(error=f"the container is {self.state['state']}, not running")
            return
        if self.quiesced is not None:
            client.answer(error="another dump of this container is under way")
            return
        self.quiesced = {"reason": request["reason"], "client": client}
        streams = [entry for p in self.processes.values() for entry in p.streams.describe()]
        processes = {
            str(number): {
                "terminal": process.terminal,
                "uid": self.plan["process"]["uid"] if number == 0 else process.info["uid"],
                "info": process.info,
            }
            for number, process in self.processes.items()
        }
        client.answer(
            streams=streams,
            processes=processes,
            main_pid=self.state["main_pid"],
            started_ns=self.state["started_ns"],
            init_pid=self.init_pid,
        )

    def do_resume(self, client: Client, request: dict) -> None:
        """The dump is over and the container runs on."""
        self.quiesced = None
        client.answer(ok=True)


# Only these can be called from the socket.
REQUESTS = {
    name: name
    for name in (
        "go",
        "start",
        "state",
        "kill",
        "wait",
        "attach",
        "exec",
        "quiesce",
        "resume",
        "verdict",
        "hold",
        "take_over",
    )
}


def _name(container: str) -> int:
    """The address of the process name for PR_SET_NAME; it is copied by the kernel."""
    import ctypes

    buffer = ctypes.create_string_buffer(f"ckpt-{container[:8]}".encode())
    _name.keep = buffer  # type: ignore[attr-defined]
    return ctypes.addressof(buffer)


def _by_job(streams: list[dict]) -> dict[int, dict[str, str]]:
    jobs: dict[int, dict[str, str]] = {}
    for entry in streams:
        jobs.setdefault(entry["job"], {})[entry["role"]] = entry["name"]
    return jobs


def _decode(status: int) -> dict:
    """A wait status as exit code (128 + signal, as a shell has it) and signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"exit_code": 128 + number, "signal": number}
    return {"exit_code": os.WEXITSTATUS(status), "signal": None}


def _in_pid_namespace(init_pid: int, action: object) -> None:
    """Run ACTION in a child inside the pid namespace: there the pids are those that the container knows."""
    helper = os.fork()
    if helper == 0:
        try:
            fd = os.open(f"/proc/{init_pid}/ns/pid", os.O_RDONLY)
            syscalls.setns(fd, syscalls.CLONE_NEWPID)
            inner = os.fork()
            if inner == 0:
                action()  # type: ignore[operator]
                os._exit(0)
            os.waitpid(inner, 0)
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def _outer_pid(init_pid: int, inner: int) -> int:
    """The pid, here, of the process that is INNER in the container of INIT_PID."""
    ours = os.stat(f"/proc/{init_pid}/ns/pid").st_ino
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/status") as file:
                for line in file:
                    if line.startswith("NSpid:"):
                        if line.split()[-1] == str(inner):
                            if os.stat(f"/proc/{name}/ns/pid").st_ino == ours:
                                return int(name)
                        break
        except OSError:
            continue
    raise ProcessLookupError(3, "no such process", str(inner))


def main() -> int:
    plan_path, starter_fd = sys.argv[1], int(sys.argv[2])
    with open(plan_path) as file:
        plan = json.load(file)
    os.setsid()
    os.chdir("/")
    starter = socket.socket(fileno=starter_fd)
    outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    monitor = Monitor(plan, starter)
    monitor.run()
    # Out of our mount namespace: in it, layers and volumes are mounted below the directory that is deleted next.
    syscalls.setns(outside, syscalls.CLONE_NEWNS)
    # What is left (network, cgroups, restart policy) needs more than we have loaded.
    os.execve(plan["ended"][0], plan["ended"], plan["environment"])


if __name__ == "__main__":
    main()
