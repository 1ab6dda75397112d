"""Clients of a service that keep to a timetable: each request has its moment, and its latency counts from there.

A client that waits for the answer before it thinks of the next request sees one slow request where a service stood
still, and calls all those quick that it would have sent meanwhile. So here what is late is sent late, and counted so.

    python -m benchmarks.service_client redis|postgres ADDRESS PORT CONNECTIONS RATE FILE

Each connection sends RATE requests a second. Says "ready" when all are connected, works until standard input ends,
and writes FILE: for each request its moment (CLOCK_REALTIME) and its latency, both in ns, as struct "=qq". There is
no second try: what breaks is the end, with its reason on standard error.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.workload_lab.client import Connection

RECORD = struct.Struct("=qq")
_VALUE = b"x" * 200


def redis(wire: Connection, number: int) -> Callable[[int], None]:
    def request(count: int) -> None:
        key = b"client:%d:%d" % (number, count % 1000)
        wire.send(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$200\r\n%b\r\n" % (len(key), key, _VALUE))
        if (answer := wire.until(b"\r\n")) != b"+OK":
            raise ConnectionError(f"SET was answered {answer!r}")

    return request


def postgres(wire: Connection, number: int) -> Callable[[int], None]:
    """Protocol 3.0, simple queries (postgresql.org/docs, "Message Flow")."""

    def ask(data: bytes) -> None:
        wire.send(data)
        while True:
            kind = wire.exactly(1)
            body = wire.exactly(int.from_bytes(wire.exactly(4), "big") - 4)
            if kind == b"E":
                raise ConnectionError(f"the server says {body!r}")
            if kind == b"Z":
                return

    def query(text: str) -> None:
        body = text.encode() + b"\0"
        ask(b"Q" + struct.pack("!I", len(body) + 4) + body)

    start = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
    ask(struct.pack("!I", len(start) + 4) + start)
    query(f"CREATE TABLE t{number} (n int PRIMARY KEY, filler text)")
    query("SET synchronous_commit = off")

    def request(count: int) -> None:
        query(f"INSERT INTO t{number} VALUES ({count}, repeat('x', 200))")

    return request


KINDS = {"redis": redis, "postgres": postgres}


class Client:
    """One connection with its timetable."""

    def __init__(self, request: Callable[[int], None], rate: float, first: float) -> None:
        self._request = request
        self._step = 1 / rate
        self._first = first
        self.found: list[tuple[int, int]] = []
        self.fault: Exception | None = None

    def work(self, over: threading.Event) -> None:
        offset = time.time() - time.monotonic()
        count = 0
        try:
            while not over.is_set():
                moment = self._first + count * self._step
                time.sleep(max(0.0, moment - time.monotonic()))
                self._request(count)
                late = time.monotonic() - moment
                self.found.append((int((moment + offset) * 1e9), int(late * 1e9)))
                count += 1
        except (OSError, ValueError) as fault:
            self.fault = fault


def main() -> None:
    kind, address, port, connections, rate, path = sys.argv[1:]
    count = int(connections)
    requests = [KINDS[kind](Connection(address, int(port)), n) for n in range(count)]
    over = threading.Event()
    begin = time.monotonic() + 0.1
    each = float(rate)
    clients = [Client(r, each, begin + n / each / count) for n, r in enumerate(requests)]
    threads = [threading.Thread(target=client.work, args=(over,)) for client in clients]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    found = sorted(pair for client in clients for pair in client.found)
    Path(path).write_bytes(b"".join(RECORD.pack(*pair) for pair in found))
    for client in clients:
        if client.fault is not None:
            sys.exit(f"after {len(client.found)} requests: {client.fault}")


if __name__ == "__main__":
    main()
