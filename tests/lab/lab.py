"""The lab as a whole: made, used, and removed whatever happened in between.

Removing is written for the worst case: a set-up that stopped midway, a second Ctrl-C, a ckpt that
is broken. It relies on nothing but the names that all parts carry, and each of its steps is tried
whether or not the one before worked. Signals wait meanwhile.

What is on disk (`lab.json`) suffices to take the lab down from another process. A lab that was
started by a program goes with it; should the program be killed too hard to clean up, the next lab
does it. A lab from the command line stays until `down`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.network.plug import inside
from runtime.paths import HostPaths
from tests import runtag, sweep
from tests.lab import processes, topology
from tests.lab.login import Login
from tests.lab.topology import LabError
from tests.patience import patient

__all__ = ["Host", "Lab", "LabError", "labs"]

_BASE = Path("/tmp")
_CGROUP = Path("/sys/fs/cgroup")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Host:
    """One of the lab's hosts. NAME is its name for SSH too, ROOT its ckpt root."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.address, self.address6 = topology.addresses(number)
        self.root = lab.directory / name
        self.namespace = topology.NETNS / topology.namespace(lab.run_name, name)

    def __repr__(self) -> str:
        return f"<lab host {self.name} at {self.address}>"

    def environment(self) -> dict[str, str]:
        """What ckpt on this host is to know, started here or over SSH."""
        found = {
            "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
            "CKPT_ROOT": str(self.root),
            "CKPT_SSH_CONFIG": str(self.lab.login.config),
            "CKPT_KNOWN_HOSTS": str(self.lab.login.known_hosts),
        }
        for name in ("CKPT_CRIU", "CKPT_CRIU_PREFIX", "CKPT_LOG", runtag.VARIABLE):
            if name in os.environ:
                found[name] = os.environ[name]
        return found

    def _whole_environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("CKPT_", "SSH_"))}
        # A home of its own: no program shall find the user's ~/.ssh.
        home = {"HOME": str(self.lab.directory / "home")}
        return {**mine, **home, **self.environment(), **(more or {})}

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that starts ARGV on this host."""
        return ["nsenter", f"--net={self.namespace}", "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run ARGV here to its end, output captured as text unless OPTIONS say otherwise.

        TIMEOUT is in seconds of a developer's machine (tests/patience.py).

        Raises CalledProcessError with the error output as a note (if CHECK), TimeoutExpired.
        """
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **options}
        if "input" in options:
            del options["stdin"]
        if "stdout" in options or "stderr" in options:
            del options["capture_output"]
        done = subprocess.run(
            self.argv(argv),
            env=self._whole_environment(env),
            timeout=patient(timeout),
            **options,
        )
        if check and done.returncode:
            error = subprocess.CalledProcessError(
                done.returncode, list(argv), done.stdout, done.stderr
            )
            error.add_note(f"on host {self.name}: {str(done.stderr or done.stdout)[-4000:]}")
            raise error
        return done

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start ARGV here; whoever still runs when the lab closes is killed."""
        process = subprocess.Popen(
            self.argv(argv), env=self._whole_environment(env), **{"text": True, **options}
        )
        self.lab.children.append(process)
        return process

    def ckpt(self, *arguments: str, json_output: bool = False, **options: Any) -> Any:
        """Run ckpt here; returns its output as text, or with JSON_OUTPUT what it means."""
        words = list(map(str, arguments))
        if json_output:
            # Options end where the container's command begins.
            at = words.index("--") if "--" in words else len(words)
            words.insert(at, "--json")
        done = self.run(["ckpt", *words], **options)
        return json.loads(done.stdout) if json_output else done.stdout

    def ssh(self, target: Host, *command: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run COMMAND on TARGET through this host's OpenSSH client."""
        config = str(self.lab.login.config)
        return self.run(["ssh", "-F", config, target.name, *command], **options)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread's time on this host; sockets made meanwhile stay there."""
        with self.namespace.open() as file, inside(file.fileno()):
            yield


class Lab:
    """Hosts HOSTS with ckpt roots and sshd, and CLIENTS without sshd, on one segment.

    STORAGE "tmpfs" puts the ckpt roots into memory. With PERSISTENT the lab outlives this process.
    """

    def __init__(
        self,
        hosts: Sequence[str] = ("a", "b"),
        clients: Sequence[str] = ("c",),
        *,
        storage: str = "disk",
        persistent: bool = False,
        name: str | None = None,
    ) -> None:
        if storage not in ("disk", "tmpfs"):
            raise ValueError(f"storage {storage!r} is neither disk nor tmpfs")
        self.run_name = name or _new_name()
        self.directory = _BASE / f"ckpt-{self.run_name}"
        self.login = Login(self.directory / "ssh")
        self.children: list[subprocess.Popen[Any]] = []
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._server_names = list(hosts)
        self._storage = storage
        self._persistent = persistent
        self._handlers: dict[int, Any] = {}
        names = [*hosts, *clients]
        self.hosts = {name: Host(self, name, number) for number, name in enumerate(names, 1)}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Lab:
        self._catch_signals()
        try:
            self.up()
        except BaseException:
            self._release_signals()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self._release_signals()

    # --- up ---------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make everything; on failure nothing is left. Raises LabError, OSError."""
        if os.geteuid() != 0:
            raise LabError("the lab needs root: network namespaces, bridges, sshd")
        remove_dead_labs()
        try:
            self._up()
        except BaseException:
            self.close()
            raise

    def _up(self) -> None:
        self.directory.mkdir(mode=0o711)
        self._write_description()
        (self.directory / "home").mkdir(mode=0o700)
        for host in self.hosts.values():
            host.root.mkdir(mode=0o711)
            if self._storage == "tmpfs":
                topology.tool("mount", "-t", "tmpfs", "-o", "mode=0711", "ckpt-lab", str(host.root))
        topology.make(self.run_name, list(self.hosts))
        servers = {name: self.hosts[name] for name in self._server_names}
        self.login.make({name: (h.address, h.address6) for name, h in servers.items()})
        for name, host in servers.items():
            server = self.login.serve(name, host.namespace, host.environment())
            self._servers[name] = server
        self._write_description()

    def _write_description(self) -> None:
        owner = None if self._persistent else [os.getpid(), processes.start_time(os.getpid())]
        description = {
            "hosts": self._server_names,
            "clients": [name for name in self.hosts if name not in self._server_names],
            "storage": self._storage,
            "owner": owner,
        }
        temp = self.directory / ".lab.json.tmp"
        temp.write_text(json.dumps(description))
        temp.rename(self.directory / "lab.json")

    @classmethod
    def load(cls, directory: Path) -> Lab:
        """A lab that another process made. Raises LabError if there is none."""
        try:
            raw = json.loads((directory / "lab.json").read_text())
            return cls(
                raw["hosts"],
                raw["clients"],
                storage=raw["storage"],
                persistent=raw["owner"] is None,
                name=directory.name.removeprefix("ckpt-"),
            )
        except (OSError, ValueError, KeyError) as error:
            raise LabError(f"no lab in {directory}: {error}") from error

    # --- in use -----------------------------------------------------------------------------------

    def link_down(self, name: str) -> None:
        """Pull the cable of a host: its frames are lost, in both directions."""
        topology.set_port(self.run_name, name, up=False)

    def link_up(self, name: str) -> None:
        topology.set_port(self.run_name, name, up=True)

    def limit(self, name: str, rate: str | None) -> None:
        """Limit a host's rate in both directions, as in "100mbit"; None takes the limit away."""
        topology.limit(self.run_name, name, rate)

    def container_address(self, number: int = 0) -> tuple[str, str]:
        """An IPv4 and an IPv6 "address/prefix" on the segment, free for a container."""
        v4, v6 = topology.addresses(100 + number)
        return f"{v4}/24", f"{v6}/64"

    def log_of(self, name: str) -> str:
        """What a host's sshd wrote."""
        return (self.login.directory / name / "log").read_text(errors="replace")

    def reset(self) -> None:
        """Hosts as new: cables in, no limits, no containers, no processes but sshd, empty roots."""
        for name, host in self.hosts.items():
            self.link_up(name)
            self.limit(name, None)
            self._remove_containers(host)
        servers = {server.pid for server in self._servers.values()}
        processes.end(self.directory, topology.inodes(self.run_name), spare=servers)
        self._reap()
        for host in self.hosts.values():
            self._remove_cgroups(host)
            for entry in host.root.iterdir():
                sweep.clear(entry)

    # --- down -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove everything. Raises LabError if something stays, after trying all of it."""
        problems: list[str] = []
        with _signals_wait():
            for step in (
                *(lambda host=host: self._remove_containers(host) for host in self.hosts.values()),
                self._end_processes,
                *(lambda host=host: self._remove_cgroups(host) for host in self.hosts.values()),
                lambda: topology.remove(self.run_name),
                self._remove_files,
            ):
                try:
                    step()
                except Exception as error:
                    problems.append(str(error))
        problems += [f"{name} is still there" for name in topology.existing(self.run_name)]
        if problems:
            raise LabError("; ".join(problems))

    def _end_processes(self) -> None:
        left = processes.end(self.directory, topology.inodes(self.run_name))
        self._reap()
        if left:
            raise LabError(f"processes don't end: {left}")

    def _remove_files(self) -> None:
        if self.directory.exists():
            sweep.clear(self.directory)
        if self.directory.exists():
            raise LabError(f"{self.directory} is still there")

    def _remove_containers(self, host: Host) -> None:
        """The gentle way first: ckpt takes its own things away (cgroups, mounts, leases)."""
        # A migration that a test left in the middle keeps others from touching its container.
        for journal in (host.root / "migrations").glob("*.json"):
            journal.unlink(missing_ok=True)
        folder = host.root / "containers"
        identities = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if not identities or not host.namespace.exists():
            return
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            host.run(["ckpt", "rm", "-f", *identities], check=False, timeout=30)

    def _remove_cgroups(self, host: Host) -> None:
        """The empty cgroups which ckpt made for the host's root, as its tag tells."""
        tag = HostPaths.of(str(host.root)).tag
        for parent in [*_CGROUP.glob(f"ckpt*/{tag}"), *_CGROUP.glob(f"*/ckpt*/{tag}")]:
            folders = [Path(folder) for folder, _, _ in os.walk(parent)]
            for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _reap(self) -> None:
        """Collect those of our own children that were killed, and close the pipes to them."""
        for process in self.children:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.children.clear()
        for server in self._servers.values():
            server.poll()

    # --- signals ----------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Let SIGTERM and SIGHUP unwind like Ctrl-C does, unless the program handles them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, _unwind)

    def _release_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def _unwind(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that arrive meanwhile are delivered afterwards."""
    waiting = {signal.SIGINT, *_SIGNALS}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _new_name() -> str:
    # In a test run its tag, so that the run's own leak check and sweep know the lab.
    if tag := os.environ.get(runtag.VARIABLE):
        names = (f"{tag}-lab{number}" for number in itertools.count(1))
        return next(name for name in names if not (_BASE / f"ckpt-{name}").exists())
    return f"lab{secrets.token_hex(2)}"


def labs() -> list[Lab]:
    """Every lab outside of test runs, on this machine."""
    found = []
    for directory in sorted(_BASE.glob("ckpt-lab????")):
        with contextlib.suppress(LabError):
            found.append(Lab.load(directory))
    return found


def owner_lives(directory: Path) -> bool:
    """Whether the lab has nobody to wait for, or its owner still runs."""
    owner = json.loads((directory / "lab.json").read_text())["owner"]
    return owner is None or processes.start_time(owner[0]) == owner[1]


def remove_dead_labs() -> None:
    """Take down the labs whose owner was killed before it could do so."""
    for lab in labs():
        with contextlib.suppress(OSError, ValueError, KeyError, LabError):
            if not owner_lives(lab.directory):
                lab.close()
