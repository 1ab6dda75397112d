"""Two lab hosts, a container that knows its own pauses, and a client that keeps one TCP connection to it.

What a test asks again and again: does it run here, still with its client's connection and its memory; and is there
nothing of it there. "Nothing" is looked for where it would be, not only in what ckpt says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckpt.ops import journal
from runtime.paths import HostPaths
from tests.lab import Lab
from tests.lab.lab import Host
from tests.patience import patient

SOURCE = Path(__file__).with_name("ticker.c")
_CGROUP = Path("/sys/fs/cgroup")
PORT = 7000
PATIENCE = patient(40)
"""Seconds for what happens by itself; never waited for in full unless the test fails."""


def build_rootfs(where: Path) -> Path:
    """A root file system of one static program."""
    program = where / "bin" / "ticker"
    program.parent.mkdir(parents=True)
    subprocess.run(["cc", "-O2", "-static", "-Wall", "-Werror", "-o", program, SOURCE], check=True)
    return where


def eventually(what: str, check: Callable[[], object], patience: float = PATIENCE) -> Any:
    """The first true value of CHECK, which is asked until it has one; AssertionError with WHAT otherwise."""
    until = time.monotonic() + patience
    while True:
        with contextlib.suppress(AssertionError, OSError):
            if found := check():
                return found
        if time.monotonic() > until:
            check_again = check()
            assert check_again, f"not after {patience:g} s: {what}"
            return check_again
        time.sleep(0.05)


class Client:
    """One TCP connection to a ticker, from the lab's third host."""

    def __init__(self, lab: Lab, address: str) -> None:
        with lab["c"].inside():
            self.socket = socket.create_connection((address, PORT), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self._file = self.socket.makefile("rb")
        self._count = 0

    def beat(self) -> bool:
        """One exchange on the old connection, with the program that has counted since it began."""
        self._count += 1
        self.socket.sendall(b"ping\n")
        line = self._file.readline()
        assert line.split() == [b"ping", b"%d" % self._count], line
        return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class World:
    """The hosts a, b and what runs there."""

    def __init__(self, lab: Lab, rootfs: Path, scratch: Path) -> None:
        self.lab = lab
        self.rootfs = rootfs
        self.scratch = scratch
        self.a, self.b = lab["a"], lab["b"]
        self._clients: list[Client] = []
        self._begun: subprocess.Popen[str] | None = None
        self.words: tuple[str, ...] = ()
        """Options of every migration, before the test's own."""

    # ---- doing

    def run(
        self, *args: str, name: str = "w", network: str | None = None, options: tuple[str, ...] = ()
    ) -> None:
        """Start a ticker on a; by default on the shared segment, with PORT open."""
        if network is None:
            network = f"l2=br0,ip={self.lab.container_address()[0]}"
            args = ("-p", str(PORT), *args)
        self.a.ckpt(
            "run", "-d", "--name", name, "--network", network, *options,
            str(self.rootfs), "--", "/bin/ticker", *args,
        )  # fmt: skip
        eventually("the program is ready", lambda: "ready" in self.a.ckpt("logs", name))

    def connect(self) -> Client:
        # An earlier test's container had the same address with another MAC: a start announces its own.
        client = Client(self.lab, self.lab.container_address()[0].split("/")[0])
        self._clients.append(client)
        client.beat()
        return client

    def migrate(
        self,
        *words: str,
        source: Host | None = None,
        check: bool = True,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`ckpt migrate w b`, with more words; from a unless told."""
        host = source or self.a
        target = self.a.name if host is self.b else self.b.name
        return host.run(["ckpt", "migrate", "w", target, *self.words, *words], check=check, env=env)

    def begin(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """The same, in the background."""
        self._begun = self.a.popen(
            ["ckpt", "migrate", "w", "b", *self.words, *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self._begun

    def stop_at(self, point: str, what: str, *, there: bool = False) -> dict[str, str]:
        """The environment that makes a migration stop at POINT, at the source or THERE."""
        word = f"CKPT_TEST_STOP_AT={point}:{what}={self.scratch / point}"
        if there:
            return {"CKPT_REMOTE": f"env {word} ckpt"}
        name, _, value = word.partition("=")
        return {name: value}

    def reached(self, point: str) -> None:
        path = (self.scratch / point).with_suffix(".reached")
        try:
            eventually(f"{point} is reached", path.exists)
        except AssertionError as error:
            if self._begun is not None and self._begun.poll() and self._begun.stderr is not None:
                error.add_note(f"the migration had ended: {self._begun.stderr.read()}")
            raise

    def go_on(self, point: str) -> None:
        (self.scratch / point).with_suffix(".go").touch()

    # ---- asking

    def state(self, host: Host, name: str = "w") -> str:
        for one in host.ckpt("ps", "--all", json_output=True):
            if one["name"] == name:
                return str(one["state"])
        return ""

    def runs_at(self, host: Host, client: Client | None = None) -> None:
        """It runs on HOST: ckpt says so, and its client talks to the same program on the same connection."""
        eventually(f"it runs on {host.name}", lambda: self.state(host) == "running")
        if client is not None:
            client.beat()

    def nothing_at(self, host: Host, patience: float = PATIENCE) -> None:
        """Nothing of a container or a migration is on HOST, or soon won't be."""
        until = time.monotonic() + patience
        while left := self.left_at(host):
            assert time.monotonic() < until, f"left on {host.name}: {left}"
            time.sleep(0.05)

    def left_at(self, host: Host) -> list[str]:
        paths = HostPaths.of(str(host.root))
        found = [str(path) for path in _below(paths.containers)]
        found += [str(path) for path in _below(paths.run / "c")]
        found += [str(path) for path in paths.run.glob("a*") if path.is_dir()]
        found += [str(path) for path in _below(paths.journals)]
        found += [str(path) for path in paths.layers.glob(".draft-*")]
        for parent in [*_CGROUP.glob(f"ckpt*/{paths.tag}"), *_CGROUP.glob(f"*/ckpt*/{paths.tag}")]:
            with contextlib.suppress(FileNotFoundError):  # going away right now
                found += [str(path) for path in parent.iterdir() if path.is_dir()]
        links = host.run(["ip", "-o", "link"]).stdout.splitlines()
        found += [line for line in links if line.split(": ")[1].startswith("ck")]
        found += self.processes(host)
        return found

    def processes(self, host: Host) -> list[str]:
        """Monitors, agents and CRIUs of a host."""
        mark = f"CKPT_ROOT={host.root}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and not _is_sshd(entry):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"{entry.name} {words}")
        return found

    def gaps(self, host: Host) -> list[tuple[int, int]]:
        """(end, length) of the pauses of the ticker, in ns of CLOCK_REALTIME, as it saw them."""
        (path,) = host.root.glob("containers/*/rw/upper/gaps")
        return [
            (int(end), int(length)) for end, length in map(str.split, path.read_text().splitlines())
        ]

    def status(self, host: Host) -> dict[str, Any]:
        (path,) = host.root.glob("containers/*/status.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def jobs(self, host: Host) -> dict[str, Any]:
        found: dict[str, Any] = self.status(host)["jobs"]
        return found

    def journal(self, host: Host) -> dict[str, Any]:
        (entry,) = journal.entries(HostPaths.of(str(host.root)).journals)
        return asdict(entry)

    # ---- ending

    def clean(self) -> None:
        for client in self._clients:
            client.close()
        for name in ("a", "b"):
            self.lab.link_up(name)
        for process in list(self.lab.children):
            process.kill()
            process.communicate()
            self.lab.children.remove(process)
        hosts = (self.a, self.b)
        if any(
            self._cgroups(host)
            or any(host.root.glob("migrations/*.journal"))
            or any(host.root.glob("containers/*"))
            for host in hosts
        ):
            self.lab.reset()
            # What a test that failed left without a record: the next one is not to stumble over it.
            for host in hosts:
                for pid in self._strays(host):
                    kill(pid)
                eventually("they are dead", lambda: not self._strays(host))  # noqa: B023 - called at once
                for directory in self._cgroups(host):
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    def _strays(self, host: Host) -> list[int]:
        """Processes in the cgroups of HOST's containers."""
        found: set[int] = set()
        for directory in self._cgroups(host):
            with contextlib.suppress(OSError):
                found |= set(map(int, (directory / "cgroup.procs").read_text().split()))
        return sorted(found)

    def _cgroups(self, host: Host) -> list[Path]:
        tag = HostPaths.of(str(host.root)).tag
        return [*_CGROUP.glob(f"ckpt*/{tag}/*/"), *_CGROUP.glob(f"*/ckpt*/{tag}/*/")]


def criu_of(host: Host, verb: str) -> list[int]:
    """The CRIU processes that dump or restore a container of HOST."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environ = (entry / "environ").read_bytes()
                cwd_hint = str(host.root).encode()
                if (
                    verb.encode() in words
                    and b"--stream" in words
                    and (cwd_hint in environ or any(cwd_hint in word for word in words))
                ):
                    found.append(int(entry.name))
    return sorted(found)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _below(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _is_sshd(entry: Path) -> bool:
    return (entry / "comm").read_text().startswith("sshd")


@contextlib.contextmanager
def opened(lab: Lab, rootfs: Path, scratch: Path) -> Iterator[World]:
    world = World(lab, rootfs, scratch)
    try:
        yield world
    finally:
        world.clean()


def refused(
    world: World,
    code: int,
    *words: str,
    env: dict[str, str] | None = None,
    container: bool = True,
) -> str:
    """Migrate w to b, which must fail with CODE; its one line. CONTAINER: it runs on, and no journal is left."""
    done = world.migrate(*words, check=False, env=env)
    said = [line for line in done.stderr.splitlines() if line.startswith("ckpt: ")]
    assert done.returncode == code, done.stderr
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    if container:
        assert world.state(world.a) == "running"
        assert not any(world.a.root.glob("migrations/*"))
    return said[0]
