"""A client that works on one connection without pause and remembers what was promised to it.

    python3 client.py redis|http|count|postgres ADDRESS PORT

Says "connected", works until its standard input ends, then says a JSON object: {"requests", "problem", "value"}. There
is no second connection and no second try: any reset, refusal or wrong answer is the end, and named.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

PATIENCE = 120.0
"""Seconds without an answer: two dumps in a row and TCP's backed-off retries fit in."""


class Connection:
    def __init__(self, address: str, port: int) -> None:
        self.sock = socket.create_connection((address, port), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            self._more()
        found, self._data = self._data[:count], self._data[count:]
        return found

    def until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._more()
        found, _, self._data = self._data.partition(end)
        return found

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._data += data


class Redis:
    """Counts up a key, and writes one key per number."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self.value = 0

    def work(self) -> None:
        self.value += 1
        self._expect(b"INCR counter", b":%d" % self.value)
        self._expect(b"SET k%d v%d" % (self.value, self.value), b"+OK")

    def finish(self) -> None:
        for number in range(1, self.value + 1):
            self._c.send(b"GET k%d\r\n" % number)
            length = int(self._c.until(b"\r\n")[1:])
            found = self._c.exactly(length + 2)[:-2] if length >= 0 else None
            if found != b"v%d" % number:
                raise AssertionError(f"key {number} is {found!r}")

    def _expect(self, command: bytes, answer: bytes) -> None:
        self._c.send(command + b"\r\n")
        found = self._c.until(b"\r\n")
        if found != answer:
            raise AssertionError(f"{command!r} is answered {found!r}, not {answer!r}")


class Http:
    """Gets / on a connection that is kept alive; it says "hello"."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self.value = 0

    def work(self) -> None:
        self.value += 1
        body = self.ask("GET", "/")
        if body != b"hello\n":
            raise AssertionError(f"/ is {body!r}")

    def finish(self) -> None:
        pass

    def ask(self, method: str, path: str) -> bytes:
        self._c.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = self._c.until(b"\r\n\r\n").decode().split("\r\n")
        if " 200 " not in head[0]:
            raise AssertionError(f"{method} {path}: {head[0]}")
        fields = dict(line.lower().split(": ", 1) for line in head[1:])
        if fields.get("connection") == "close":
            raise ConnectionError("the server wants to close the connection")
        return self._c.exactly(int(fields["content-length"]))


class Count(Http):
    """A service that counts its requests in memory: each answer is one more than the last."""

    def work(self) -> None:
        self.value += 1
        found = self.ask("POST", "/count")
        if int(found) != self.value:
            raise AssertionError(f"the count is {found!r}, not {self.value}")


class Postgres:
    """Inserts one row per transaction (protocol 3.0, simple queries)."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self.value = 0
        body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        self._c.send(struct.pack("!I", len(body) + 4) + body)
        self._answer()
        self.query("CREATE TABLE t (n int PRIMARY KEY, filler text)")

    def query(self, text: str) -> list[bytes]:
        body = text.encode() + b"\0"
        self._c.send(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self._answer()

    def _answer(self) -> list[bytes]:
        rows = []
        while True:
            kind = self._c.exactly(1)
            data = self._c.exactly(struct.unpack("!I", self._c.exactly(4))[0] - 4)
            if kind == b"E":
                raise AssertionError(f"the server says {data!r}")
            if kind == b"D":
                rows.append(data[6:])
            if kind == b"Z":
                return rows

    def work(self) -> None:
        self.value += 1
        self.query(f"INSERT INTO t VALUES ({self.value}, repeat('x', 500))")

    def finish(self) -> None:
        self.query("CHECKPOINT")
        [found] = self.query(
            "SELECT count(*) || ' ' || sum(n) || ' ' || sum(length(filler)) FROM t"
        )
        n = self.value
        wanted = f"{n} {n * (n + 1) // 2} {n * 500}".encode()
        if found != wanted:
            raise AssertionError(f"the table has {found!r}, not {wanted!r}")


KINDS = {"redis": Redis, "http": Http, "count": Count, "postgres": Postgres}


def main() -> None:
    kind, address, port = sys.argv[1:]
    problem = ""
    requests = 0
    service: Redis | Http | Count | Postgres | None = None
    try:
        service = KINDS[kind](Connection(address, int(port)))
        print("connected", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            service.work()
            requests += 1
            if requests % 100 == 0:
                print(requests, flush=True)
        service.finish()
    except (OSError, AssertionError, ValueError) as error:
        problem = f"{type(error).__name__} at request {requests}: {error}"
    value = service.value if service else 0
    print(json.dumps({"requests": requests, "problem": problem, "value": value}), flush=True)


if __name__ == "__main__":
    main()
