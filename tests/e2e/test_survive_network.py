"""Connections at the edges: not accepted yet at the freeze; of a container that is restored beside its original."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.survive_lab.container import inspect, wait_for_output
from tests.lab import Host, Lab, rootfs
from tests.patience import patient

pytestmark = [*needs.SURVIVAL, needs.nftables, pytest.mark.timeout(180)]

# Accepts slowly, so that its backlog is seldom empty; answers each line with the sum of what its own two ends of a
# connection over loopback have exchanged, and ends a connection like any server.
SERVER = """
import socket, threading, time

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 9000))
server.listen(100)
inner = socket.create_connection(("127.0.0.1", 9000))
other, _ = server.accept()
lock = threading.Lock()

def serve(connection):
    try:
        with connection:
            while data := connection.recv(100):
                with lock:
                    inner.sendall(data)
                    echo = b""
                    while len(echo) < len(data):
                        echo += other.recv(100)
                connection.sendall(echo)
    except OSError as error:
        print("a connection ended:", error.errno, flush=True)

print("ready", flush=True)
while True:
    connection, _ = server.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
    time.sleep(0.003)
"""
STUCK = """
import socket, time
server = socket.create_server(("0.0.0.0", 9000), backlog=10)
print("ready", flush=True)
while True:
    time.sleep(100)
"""
# Opens connection after connection, several at a time; any that fails is told.
CROWD = """
import json, select, socket, sys, threading
done, wrong = [0], []

def come_and_go():
    while not stop:
        try:
            with socket.create_connection((sys.argv[1], 9000), timeout=100) as mine:
                mine.sendall(b"hello")
                found = b""
                while len(found) < 5:
                    data = mine.recv(5)
                    if not data:
                        raise ConnectionError("closed without an answer")
                    found += data
                done[0] += 1
        except OSError as error:
            wrong.append(repr(error))

stop = []
threads = [threading.Thread(target=come_and_go) for _ in range(6)]
for thread in threads:
    thread.start()
for line in sys.stdin:
    print(done[0], flush=True)
stop.append(True)
for thread in threads:
    thread.join()
print(json.dumps({"done": done[0], "wrong": wrong}), flush=True)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    programs = {"/server.py": SERVER, "/stuck.py": STUCK}
    return rootfs.python(tmp_path_factory.mktemp("network") / "rootfs", files=programs)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@contextlib.contextmanager
def serving(host: Host, tree: Path, script: str, network: str, *options: str) -> Iterator[None]:
    base = ["-d", "--name", "server", "--network", network, *options]
    host.ckpt("run", *base, str(tree), "--", "python3", "-u", "-B", script)
    try:
        wait_for_output(host, "server", "ready")
        yield
    finally:
        names = [entry["name"] for entry in host.ckpt("ps", "-a", json_output=True)]
        if names:
            host.ckpt("rm", "-f", *names)


class Crowd:
    def __init__(self, host: Host, address: str) -> None:
        argv = [sys.executable, "-u", "-c", CROWD, address]
        self.process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def served(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def goes_on(self) -> None:
        before = self.served()
        while self.served() < before + 30:
            pass

    def end(self) -> dict[str, object]:
        out, _ = self.process.communicate(timeout=patient(150))
        report: dict[str, object] = json.loads(out.splitlines()[-1])
        return report


def test_connections_that_wait_to_be_accepted_are_not_reset(lab: Lab, tree: Path) -> None:
    network = lab.container_address()[0]
    a = lab["a"]
    with serving(a, tree, "/server.py", f"l2=br0,ip={network}"):
        crowd = Crowd(lab["c"], network.split("/")[0])
        try:
            for number in range(3):
                crowd.goes_on()
                a.ckpt("dump", "server", "--as", f"crowd-{number}", "--leave-running")
            crowd.goes_on()
            a.ckpt("migrate", "server", "root@b")
            crowd.goes_on()
            lab["b"].ckpt("migrate", "server", "root@a")
            crowd.goes_on()
            report = crowd.end()
        finally:
            crowd.process.kill()
            crowd.process.communicate()
        assert report["wrong"] == []


def test_a_service_that_does_not_accept_is_refused_by_name_and_runs_on(
    lab: Lab, tree: Path
) -> None:
    network = lab.container_address()[0]
    address = network.split("/")[0]
    a = lab["a"]
    with serving(a, tree, "/stuck.py", f"l2=br0,ip={network}"):
        with lab["c"].inside():
            waiting = [socket.create_connection((address, 9000), 30) for _ in range(2)]
        try:
            done = a.run(["ckpt", "dump", "server", "--as", "stuck"], check=False)
            assert done.returncode != 0
            assert "2 at port 9000" in done.stderr
            assert inspect(a, "server")["state"] == "running"
            with lab["c"].inside():  # the door is open again
                waiting.append(socket.create_connection((address, 9000), 30))
        finally:
            for sock in waiting:
                sock.close()


def address_of(host: Host, name: str) -> str:
    return str(inspect(host, name)["addresses"][0]).split("/")[0]


def ask(host: Host, address: str) -> bytes:
    with host.inside():
        sock = socket.create_connection((address, 9000), 30)
    with sock:
        sock.sendall(b"hello")
        return sock.recv(5, socket.MSG_WAITALL)


def test_clones_run_beside_their_original_each_with_addresses_of_its_own(
    lab: Lab, tree: Path
) -> None:
    a = lab["a"]
    with serving(a, tree, "/server.py", "bridge", "-p", "18099:9000"):
        with a.inside():
            client = socket.create_connection((address_of(a, "server"), 9000), 30)
        with client:
            client.sendall(b"early")
            assert client.recv(5, socket.MSG_WAITALL) == b"early"
            a.ckpt("dump", "server", "--as", "seed", "--leave-running")
            # At the same time, from one checkpoint.
            names = ["clone-1", "clone-2", "clone-3"]
            argv = [["ckpt", "restore", "seed", "--as", name] for name in names]
            restores = [a.popen(one, stderr=subprocess.PIPE) for one in argv]
            notes = [restore.communicate(timeout=patient(120))[1] for restore in restores]
            assert [restore.returncode for restore in restores] == [0, 0, 0], notes
            assert all("connections ended" in note and "18099" in note for note in notes), notes
            addresses = {address_of(a, name) for name in ("server", *names)}
            assert len(addresses) == 4
            ranges = {inspect(a, name)["record"]["id_base"] for name in ("server", *names)}
            assert len(ranges) == 4
            for address in addresses:
                # Through the connection that each has to itself over loopback, which went on.
                assert ask(a, address) == b"hello"
            for name in names:
                # The original's client is not theirs: their end of that connection is closed (ENOTCONN).
                wait_for_output(a, name, "a connection ended: 107")
            client.sendall(b"later")
            assert client.recv(5, socket.MSG_WAITALL) == b"later"
        assert "a connection ended" not in a.ckpt("logs", "server")


def test_restored_under_another_name_when_the_original_is_gone_it_keeps_its_address(
    lab: Lab, tree: Path
) -> None:
    a = lab["a"]
    with serving(a, tree, "/server.py", "bridge"):
        address = address_of(a, "server")
        with a.inside():
            client = socket.create_connection((address, 9000), 30)
        with client:
            a.ckpt("dump", "server", "--as", "moved")
            a.ckpt("rm", "server")
            a.ckpt("restore", "moved", "--as", "heir")
            assert address_of(a, "heir") == address
            client.sendall(b"later")
            assert client.recv(5, socket.MSG_WAITALL) == b"later"
