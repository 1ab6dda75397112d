"""A small world for the network tests: hosts and containers that are nothing but namespaces.

A host is a network namespace in which a thread of the test makes calls (`on`); a container is a
process with a user and a network namespace of its own, like a real one's first process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from runtime import syscalls
from runtime.network import host, plan
from runtime.network.config import NetworkConfig
from runtime.network.plug import Prepared
from tests import runtag

T = TypeVar("T")


class Place:
    """Where programs can be started."""

    def argv(self, *argv: str) -> list[str]:
        """The command line that starts ARGV there."""
        raise NotImplementedError

    def sh(self, *argv: str, check: bool = True) -> str:
        """A program's output."""
        return run(*self.argv(*argv), check=check)

    def python(self, code: str, check: bool = True) -> str:
        return self.sh(sys.executable, "-c", code, check=check)

    @contextlib.contextmanager
    def serving(self, port: int, address: str = "::", kind: str = "tcp") -> Iterator[None]:
        """A server that answers each connection (datagram) with its peer's address."""
        argv = self.argv(sys.executable, "-c", _SERVER, address, str(port), kind)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield
        finally:
            process.kill()
            process.communicate()


@dataclass
class Host(Place):
    """A network namespace, and a thread that lives in it."""

    name: str
    root: Path
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        ip("netns", "add", self.name)
        self._pool = ThreadPoolExecutor(1, initializer=self._enter)
        ip("-n", self.name, "link", "set", "lo", "up")

    def _enter(self) -> None:
        with open(f"/run/netns/{self.name}") as file:
            syscalls.setns(file.fileno(), syscalls.CLONE_NEWNET)

    def on(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The function's result, called in this host's namespace."""
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self._pool.shutdown()
        ip("netns", "delete", self.name)

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]

    def links(self) -> dict[str, dict[str, Any]]:
        return {link["ifname"]: link for link in json.loads(self.sh("ip", "-j", "-d", "link"))}

    def plugged(
        self, container: Container, config: NetworkConfig, *, attach: bool = True
    ) -> tuple[NetworkConfig, Prepared]:
        """The whole way from a description to a container that speaks."""
        who = container.identity
        resolved = self.on(plan.resolve, config, root_dir=self.root, container_id=who)
        prepared = self.on(host.prepare, resolved, who, root_dir=self.root)
        self.on(host.plug, prepared, container.pid)
        if attach:
            self.on(host.attach, prepared)
        return resolved, prepared

    def destroy(self, container: Container, config: NetworkConfig) -> None:
        self.on(host.destroy, config, container.identity, root_dir=self.root)


class Container(Place):
    """A process in namespaces of its own, from which other programs can be started."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        code = "import sys; print('up', flush=True); sys.stdin.read()"
        self._process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"
        self.pid = self._process.pid

    def argv(self, *argv: str) -> list[str]:
        head = ["nsenter", "--user", "--net", "--preserve-credentials", "--target", str(self.pid)]
        return [*head, *argv]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_SERVER = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
if kind == "tcp":
    server.listen()
print("serving", flush=True)
while True:
    if kind == "tcp":
        peer, who = server.accept()
        peer.sendall(who[0].encode())
        peer.close()
    else:
        _, who = server.recvfrom(100)
        server.sendto(who[0].encode(), who)
"""

_CLIENT = """
import socket, sys
address, port, kind = {address!r}, {port}, {kind!r}
try:
    if kind == "tcp":
        with socket.create_connection((address, port), timeout=2) as s:
            print(s.recv(100).decode().removeprefix("::ffff:"))
    else:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(2)
            s.sendto(b"?", (address, port))
            print(s.recv(100).decode().removeprefix("::ffff:"))
except OSError as error:
    print("error:", error.strerror or error)
"""


def who_am_i(place: Place, address: str, port: int, kind: str = "tcp") -> str:
    """As whom a server (`serving`) sees a client in PLACE; "error: ..." if it couldn't connect."""
    return place.python(_CLIENT.format(address=address, port=port, kind=kind)).strip()


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{argv}: {done.stderr.strip()}")
    return done.stdout.strip()


def ip(*argv: str) -> str:
    return run("ip", *argv)


def cable(a: Host, name_a: str, b: Host, name_b: str) -> None:
    """A cable between two hosts, both ends up."""
    ip("-n", a.name, "link", "add", name_a, "type", "veth",
       "peer", "name", name_b, "netns", b.name)  # fmt: skip
    ip("-n", a.name, "link", "set", name_a, "up")
    ip("-n", b.name, "link", "set", name_b, "up")


def address(place: Host, interface: str, *addresses: str) -> None:
    for one in addresses:
        nodad = ["nodad"] if ":" in one else []
        ip("-n", place.name, "address", "add", one, "dev", interface, *nodad)


@contextlib.contextmanager
def hosts(base: Path, *names: str) -> Iterator[list[Host]]:
    """Hosts, each with a root below BASE; gone afterwards."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            root = base / name
            root.mkdir()
            made.append(Host(f"ckpt-{runtag.TAG}-{name}", root))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def containers(*identities: str) -> Iterator[list[Container]]:
    with contextlib.ExitStack() as stack:
        made = []
        for identity in identities:
            made.append(Container(identity))
            stack.callback(made[-1].close)
        yield made
