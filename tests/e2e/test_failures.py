"""CRIU's failures in words: each cause is provoked for real, and the container goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.ops.departure import Departure
from ckpt.ops.host import Host, lock_container
from images.bundle_stream import StreamWriter
from runtime.criu import dump
from runtime.criu.obstacles import obstacles
from runtime.paths import HostPaths
from tests import needs
from tests.e2e.box import Box, opened, until
from tests.e2e.snagging import counted_on, error, nothing_of, runs_on, start, with_snags

pytestmark = needs.CHECKPOINTS


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, with_snags(small_rootfs)) as made:
        yield made


def refused_by_criu(box: Box, name: str, *words: str) -> None:
    """A dump fails with CRIU's words explained by WORDS; its log is kept; the container runs on."""
    done = box.call("dump", name, "--json", "--leave-running")
    assert done.returncode == 20, done.stderr
    found = error(done)
    for word in words:
        assert word in found["why"] + found["hint"], found
    assert any("Error" in line for line in found["lines"])
    runs_on(box, name)
    counted_on(box, name)
    assert box("checkpoints", "ls", "--json").strip() == "[]"
    box("rm", "-f", name)
    log = Path(found["log"])
    assert log.parent == box.root / "logs", "the log is to outlive the container"
    assert found["lines"][0] in log.read_text().replace("\t", " ")
    nothing_of(box)


def test_a_large_removed_file(box: Box) -> None:
    start(box, "ghost", "ghost", "/tmp/big", 70 << 20)
    refused_by_criu(box, "ghost", "/tmp/big", str(70 << 20), "64 MiB")


def test_a_small_removed_file_is_no_hindrance(box: Box) -> None:
    start(box, "ghost", "ghost", "/tmp/small", 2 << 20)
    box("dump", "ghost", "--as", "one")
    box("rm", "ghost")
    box("restore", "one")
    runs_on(box, "ghost")


def test_a_socket_of_a_family_that_criu_does_not_know(box: Box) -> None:
    start(box, "vsock", "vsock", flags=("--security-opt", "seccomp=unconfined"))
    refused_by_criu(box, "vsock", "socket", "family 40")


def test_a_criu_that_hangs_is_killed_and_no_program_sees_its_traces(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held sockets in repair mode, in which a read that waits would end with an error when the task goes on."""
    script = "snags echo 7007 & mkfifo /p; exec 3<>/p; until nc 127.0.0.1 7007 <&3; do :; done"
    box.up("web", args=("sh", "-c", script))
    box("exec", "web", "sh", "-c", "echo before > /p")
    until(lambda: "before" in box("logs", "web"))
    monkeypatch.setattr(dump, "PATIENCE", 0.2)
    host = Host(HostPaths.of(str(box.root)))
    container = host.find("web")
    with (
        open(os.devnull, "wb") as null,
        StreamWriter(null.fileno()) as writer,
        lock_container(container),
        Departure(host, container, reason="tried", leave_running=True) as departure,
    ):
        departure.prepare()
        departure.sync_files(writer)
        departure.freeze_and_dump(writer)
        assert departure._dumper is not None and departure._dumper._process is not None
        departure._dumper._process.send_signal(signal.SIGSTOP)
    box("exec", "web", "sh", "-c", "echo after > /p")
    until(lambda: "after" in box("logs", "web"))
    box("dump", "web")


# ---- restore


def fails_to_restore(box: Box, checkpoint: str, *words: str) -> None:
    done = box.call("restore", checkpoint)
    assert done.returncode == 20, done.stderr
    lines = done.stderr.splitlines()
    for word in words:
        assert word in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    log = next(line.partition(": ")[2] for line in lines if "the whole log" in line)
    assert "Error" in Path(log).read_text()
    nothing_of(box)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    file = directory / "data"
    file.write_text("hello\n")
    file.chmod(0o666)
    return directory


def holding(box: Box, volume: Path) -> None:
    """A checkpoint `one` of a container that has a file of VOLUME open; the container is gone."""
    start(box, "vol", "hold", "/vol/data", flags=("-v", f"{volume}:/vol"))
    box("dump", "vol", "--as", "one")
    box("rm", "vol")


def test_a_file_that_changed_since(box: Box, volume: Path) -> None:
    holding(box, volume)
    (volume / "data").write_text("hello, world\n")
    fails_to_restore(box, "one", "vol/data changed since the dump", "13 bytes instead of 6")
    (volume / "data").write_text("again\n")
    box("restore", "one")
    runs_on(box, "vol")


def test_a_file_that_is_missing(box: Box, volume: Path) -> None:
    holding(box, volume)
    (volume / "data").unlink()
    fails_to_restore(box, "one", "a file that a process had open is missing: vol/data")


def test_a_port_that_is_taken(box: Box) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    start(box, "echo", "echo", port, flags=("--network", "host"))
    box("dump", "echo", "--as", "one")
    box("rm", "echo")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", port))
        taken.listen()
        fails_to_restore(box, "one", "port of the container is in use")
    box("restore", "one")
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


# ---- found before anything is frozen


def test_a_dry_run_foretells_the_size_and_touches_nothing(box: Box) -> None:
    start(box, "web", "memory", 8 << 20)
    found = json.loads(box("dump", "web", "--dry-run", "--json"))
    assert found["obstacles"] == []
    assert found["processes"] == 2
    assert box("dump", "web", "--dry-run").startswith("web can be dumped: 2 processes, about 8.")
    assert box("checkpoints", "ls", "--json").strip() == "[]"
    box("dump", "web", "--as", "one")
    size = json.loads(box("checkpoints", "ls", "--json"))[0]["size"]
    assert 0.7 * size < found["images"] < 1.3 * size


def refused_early(box: Box, name: str, *words: str, code: int = 13) -> None:
    """A dump is refused before CRIU is even started."""
    for arguments in ((), ("-o", str(box.root / "stream"))):
        done = box.call("dump", name, "--json", *arguments)
        assert done.returncode == code, done.stderr
        found = error(done)
        for word in words:
            assert word in found["why"] + found["hint"], found
        assert found["log"] == ""
    assert not (box.root / "stream").exists()
    assert not list((box.root / "run").glob("c/*/criu/dump.log")), "CRIU was started"
    runs_on(box, name)
    counted_on(box, name)


def test_io_uring(box: Box) -> None:
    if Path("/proc/sys/kernel/io_uring_disabled").read_text().strip() != "0":
        pytest.skip("io_uring is switched off on this host")
    start(box, "ring", "io_uring", flags=("--security-opt", "seccomp=unconfined"))
    refused_early(box, "ring", "io_uring", "snags")


def test_the_limits_of_another_user_without_cap_sys_resource(box: Box) -> None:
    if needs.missing("capability", "CAP_SYS_RESOURCE") is None:
        pytest.skip("this host has CAP_SYS_RESOURCE")
    start(box, "user", "count", flags=("--userns", "host", "-u", "33"))
    refused_early(box, "user", "CAP_SYS_RESOURCE", "user namespace")


@needs.tool("strace")
def test_a_traced_process(box: Box) -> None:
    start(box, "traced", "count")
    pid = next(pid for pid in _pids(box, "traced") if _comm(pid) == "snags")
    tracer = subprocess.Popen(
        ["strace", "-p", str(pid), "-o", "/dev/null"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        refused_early(box, "traced", "traced", "strace")
    finally:
        tracer.terminate()
        tracer.communicate()
    box("dump", "traced")


def test_a_unix_connection_to_the_outside(box: Box, volume: Path) -> None:
    with _unix_server(volume / "socket"):
        start(box, "client", "unix", "/vol/socket", flags=("-v", f"{volume}:/vol"))
        refused_early(box, "client", "Unix socket", "outside")


def test_a_terminal_from_outside(box: Box, volume: Path) -> None:
    master, slave = pty.openpty()
    try:
        with _unix_server(volume / "socket", slave):
            start(box, "tty", "receive", "/vol/socket", flags=("-v", f"{volume}:/vol"))
        refused_early(box, "tty", "a terminal from outside", os.ttyname(slave))
    finally:
        os.close(master)
        os.close(slave)


def test_a_file_from_outside(box: Box, volume: Path, tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as file, _unix_server(volume / "socket", file.fileno()):
        start(box, "file", "receive", "/vol/socket", flags=("-v", f"{volume}:/vol"))
    refused_early(box, "file", "a file from outside", "inherited")


def test_a_container_that_does_not_run(box: Box) -> None:
    start(box, "one", "count")
    box("stop", "-t", "0", "one")
    said = box.fails(12, "dump", "one")
    assert "it is stopped, not running" in said


def test_a_criu_that_is_missing_or_too_old(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(box, "one", "count")
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho Version: 3.17.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CKPT_CRIU", str(old))
    done = box.call("dump", "one")
    assert (done.returncode, done.stderr.count("\n")) == (13, 1)
    assert "CRIU 3.17.1 is older than 4.1" in done.stderr
    monkeypatch.setenv("CKPT_CRIU", str(tmp_path / "none"))
    done = box.call("dump", "one")
    assert (done.returncode, done.stderr.count("\n")) == (10, 1)
    runs_on(box, "one")


@needs.device("/dev/fuse")
def test_a_device_that_cannot_be_carried() -> None:
    with open("/dev/fuse", "rb") as device, open("/dev/null", "rb"):
        found = obstacles([os.getpid()])
        assert [one.why for one in found] == [
            f"descriptor {device.fileno()} is the device /dev/fuse, which CRIU cannot dump"
        ]


def _pids(box: Box, name: str) -> list[int]:
    first = box.one(name)["pid"]
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextlib.contextmanager
def _unix_server(path: Path, gift: int | None = None) -> Iterator[None]:
    """Accepts one connection and holds it; the descriptor GIFT goes to whoever connects."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                held.append(server.accept()[0])
                if gift is not None:
                    socket.send_fds(held[0], [b"x"], [gift])

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes an accept() that waits still
            accepting.join()
            for connection in held:
                connection.close()
