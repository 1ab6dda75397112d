"""The demo as a user runs it, and its client, which has to notice what it claims to count."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs

REPO = Path(__file__).resolve().parent.parent.parent
CLIENT = REPO / "examples/redis_client.py"

redis = needs.tool("redis-server", "redis-cli")
lab = [needs.root, needs.criu, needs.pycriu, needs.netns, needs.sshd, needs.compiler, redis]


def with_marks(*marks: pytest.MarkDecorator) -> Any:
    def decorate(function: Any) -> Any:
        for mark in marks:
            function = mark(function)
        return function

    return decorate


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group to interrupt, as a terminal does
    )


@with_marks(*lab)
@pytest.mark.timeout(300)
def test_redis_moves_back_and_forth_and_its_client_misses_nothing() -> None:
    process = demo("--keys", "5000", "--moves", "4", "--pause", "0.3")
    out, error = process.communicate()
    result = json.loads(out.splitlines()[-1])
    assert process.returncode == 0, f"{result}\n{error}"
    assert result["error"] == ""
    assert result["moves"] == 4
    assert result["failed_requests"] == result["lost_writes"] == result["reconnects"] == 0
    assert result["requests"] > result["writes"] > 5000
    for key in ("downtime_ms", "client_gap_ms", "total_ms"):
        assert len(result[key]) == 4
        assert all(value > 0 for value in result[key])
    # Two clocks of two programs measured the same silence: the client's begins with the last reply
    # before the freeze, and ends with the first one after it.
    for downtime, gap, total in zip(
        result["downtime_ms"], result["client_gap_ms"], result["total_ms"], strict=True
    ):
        assert downtime < total
        assert gap > downtime / 2
    # The second move in each direction finds the layers at the other host.
    assert result["bytes"][0] > result["bytes"][2]


@with_marks(*lab)
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("moment", "signals"),
    [
        ("Hosts a", [signal.SIGINT]),
        ("the client writes", [signal.SIGTERM]),
        ("──▶", [signal.SIGINT]),
        ("──▶", [signal.SIGINT, signal.SIGINT, signal.SIGTERM]),
        ("1. a → b", [signal.SIGTERM]),
    ],
)
def test_interrupted_at_any_moment_it_takes_everything_away(
    moment: str, signals: list[signal.Signals]
) -> None:
    # tests/conftest.py looks for leftovers: processes, mounts, namespaces, cgroups, directories.
    process = demo("--keys", "1000", "--moves", "50", "--pause", "0.2")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if moment in line:
            break
    else:
        pytest.fail(f"never came to {moment!r}: {''.join(seen)}{process.communicate()[1]}")
    for number in signals:
        os.killpg(process.pid, number)
    _, error = process.communicate()
    assert process.returncode in {128 + number for number in signals}, error
    assert "interrupted" in error
    assert "Traceback" not in error


# --- the client -----------------------------------------------------------------------------------


class Server:
    """A Redis on loopback, in files of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port)]
            + ["--save", "", "--dir", str(self.directory)],
            stdout=subprocess.DEVNULL,
        )
        while self.cli("ping", check=False) != "PONG":
            assert self.process.poll() is None
            time.sleep(0.02)

    def cli(self, *words: str, check: bool = True) -> str:
        argv = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *words]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check
        )
        return done.stdout.strip()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.stop()


class Client:
    """redis_client.py with 200 keys."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(CLIENT), "127.0.0.1", str(port), "--keys", "200"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while "loaded" not in self.next():
            pass

    def next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        report: dict[str, Any] = json.loads(self._process.stdout.readline())
        return report

    def go_on(self) -> None:
        """Until it has made requests after now."""
        before = self.next()["requests"]
        while self.next()["requests"] <= before + 100:
            pass

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> dict[str, Any]:
        out, _ = self._process.communicate()
        report: dict[str, Any] = json.loads(out.splitlines()[-1])
        return report


@redis
def test_the_client_loses_nothing_on_a_server_that_keeps_everything(server: Server) -> None:
    client = Client(server.port)
    client.go_on()
    result = client.result()
    assert result["done"]
    assert result["failed_requests"] == result["lost_writes"] == result["reconnects"] == 0
    assert result["problems"] == []
    assert int(server.cli("dbsize")) == 200


@redis
def test_the_client_notices_a_server_that_forgets(server: Server) -> None:
    client = Client(server.port)
    client.go_on()
    server.cli("flushall")
    client.go_on()
    result = client.result()
    assert result["failed_requests"] > 0  # reads of what isn't there
    assert result["reconnects"] == 0


@redis
def test_the_client_finds_writes_that_were_lost_after_its_last_request(server: Server) -> None:
    client = Client(server.port)
    client.go_on()
    with client.standing_still():
        server.cli("flushall")
        client.stop()
    result = client.result()
    # The requests that were under way may have written some of the 200 again.
    assert 190 <= result["lost_writes"] <= 200
    assert result["reconnects"] == 0


@redis
def test_the_client_counts_a_connection_that_broke(server: Server) -> None:
    client = Client(server.port)
    client.go_on()
    server.cli("client", "kill", "type", "normal", "skipme", "yes")
    client.go_on()
    result = client.result()
    assert result["reconnects"] == 1
    assert result["failed_requests"] > 0
    assert result["lost_writes"] == 0
