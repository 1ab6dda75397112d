"""A Redis server of our own for a benchmark, and the few words that are said to it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab import rootfs

VALUE = 1000
"""Bytes of each value that fill() writes."""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Its process id and its socket. Raises rootfs.Missing."""
    path = folder / "redis.sock"
    words = [
        "--port",
        "0",
        "--unixsocket",
        path,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        folder,
    ]
    argv = [rootfs.find("redis-server"), *words]
    with subprocess.Popen(
        [*map(str, argv)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 30
            while not _answers(path):
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError("redis-server does not start")
                time.sleep(0.02)
            yield process.pid, path
        finally:
            process.kill()


@contextlib.contextmanager
def clients(path: Path, keys: int) -> Iterator[None]:
    """redis-benchmark writing to random KEYS as fast as it can, until the block ends."""
    words = ["-s", path, "-t", "set", "-r", keys, "-d", VALUE, "-n", 10**9, "-c", 8, "-q"]
    argv = [rootfs.find("redis-benchmark"), *words]
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*map(str, argv)], stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            yield
        finally:
            process.kill()


def fill(path: Path, keys: int) -> None:
    """The keys that clients() writes."""
    script = (
        f"local v = string.rep('x', {VALUE}) "
        "for i = ARGV[1], ARGV[2] do redis.call('SET', string.format('key:%012d', i), v) end"
    )
    for first in range(0, keys, 10_000):
        last = min(first + 10_000, keys) - 1
        ask(path, "EVAL", script, "0", str(first), str(last))


def commands(path: Path) -> int:
    """How many commands it has processed."""
    lines = ask(path, "INFO", "stats").split()
    (found,) = [line for line in lines if line.startswith("total_commands_processed:")]
    return int(found.split(":")[1])


def rate(path: Path, seconds: float) -> float:
    """Commands per second, over so many seconds from now."""
    before, began = commands(path), time.monotonic()
    time.sleep(seconds)
    return (commands(path) - before) / (time.monotonic() - began)


def _answers(path: Path) -> bool:
    try:
        return ask(path, "PING") == "+PONG"
    except OSError:
        return False


def ask(path: Path, *words: str) -> str:
    """One command and its reply: a status, or a bulk string."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire, wire.makefile("rb") as file:
        wire.connect(str(path))
        wire.sendall(b"*%d\r\n" % len(words))
        for word in words:
            wire.sendall(b"$%d\r\n%b\r\n" % (len(word), word.encode()))
        head = file.readline().strip()
        if head.startswith(b"-"):
            raise RuntimeError(f"redis: {head.decode()}")
        if head.startswith(b"$") and head != b"$-1":
            return file.read(int(head[1:]) + 2).decode()
        return head.decode()
