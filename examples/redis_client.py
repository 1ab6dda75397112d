"""A Redis client that remembers every acknowledged write, and misses nothing.

    python redis_client.py HOST PORT --keys 100000

One TCP connection. First it writes every key once, then it writes and reads random keys without
pause: eight requests are always under way, the next eight follow the last reply. Told to stop, it
reads every key back and compares.

On stdout there is a JSON object per line:

    {"loaded": 100000}                     every key is there, the work begins
    {"now": 12.3, "requests": 5041, "slowest_ms": 0.9, "silent_ms": 0.1, "gaps": [[11.9, 12.1]]}
                                           ten times a second; times on CLOCK_MONOTONIC in seconds.
                                           A gap lies between two replies, and is told from 5 ms on
    {"done": true, ...}                    the result, when stdin has ended

What counts: a write is *lost* when it was acknowledged and the key's value at the end is an older
one, a wrong one, or none. A request has *failed* when it was answered with an error, with a value
that can't be right, or not at all because the connection broke. A *reconnect* is a connection after
the first.

Only Python's standard library, and its own few lines of RESP (redis.io/docs, "Redis serialization
protocol"), so that nothing hides a retry.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from collections import deque
from typing import Any

DEPTH = 8
LOAD_BATCH = 500
REPORT_EVERY = 0.1
TELLING_GAP = 0.005
PATIENCE = 60.0
"""Seconds without any reply after which the connection counts as broken."""
CONNECTING = 30.0
PADDING = "x" * 80

Reply = bytes | int | None | list[Any] | Exception


class Broken(Exception):
    """The connection is gone."""


class Refused(Exception):
    """An error reply."""


class Ledger:
    """What was sent and what was acknowledged. A key's n-th value carries the number n."""

    def __init__(self, keys: int) -> None:
        self.sent = [0] * keys
        self.acked = [0] * keys

    def next_value(self, key: int) -> str:
        self.sent[key] += 1
        return f"{key}:{self.sent[key]}:{PADDING}"

    def possible(self, key: int, value: Reply, oldest: int, newest: int) -> bool:
        """Whether VALUE is the key's value number OLDEST to NEWEST."""
        if value is None:
            return oldest == 0
        if not isinstance(value, bytes):
            return False
        parts = value.decode(errors="replace").split(":")
        if len(parts) != 3 or parts[0] != str(key) or parts[2] != PADDING:
            return False
        return parts[1].isdecimal() and oldest <= int(parts[1]) <= newest


class Wire:
    """The one connection: requests out, replies in, silence measured."""

    def __init__(self, host: str, port: int, reporter: Reporter) -> None:
        self._address = (host, port)
        self._reporter = reporter
        self._socket: socket.socket | None = None
        self._input = bytearray()
        self.connections = 0

    def connect(self) -> None:
        """Raises Broken when nobody answers for long."""
        self.close()
        deadline = time.monotonic() + CONNECTING
        while True:
            try:
                made = socket.create_connection(self._address, timeout=5)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Broken(f"cannot connect: {error}") from error
                time.sleep(0.05)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(PATIENCE)
        self._socket = made
        self.connections += 1

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._input.clear()

    def send(self, commands: list[tuple[str, ...]]) -> None:
        request = bytearray()
        for words in commands:
            request += b"*%d\r\n" % len(words)
            for word in words:
                raw = word.encode()
                request += b"$%d\r\n%b\r\n" % (len(raw), raw)
        assert self._socket is not None
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise Broken(str(error)) from error

    def receive(self) -> Reply:
        """The next reply; an error reply is returned as Refused. Raises Broken."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refused(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._take(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.receive() for _ in range(int(rest))]
        raise Broken(f"not RESP: {line[:40]!r}")

    def _line(self) -> bytes:
        while (end := self._input.find(b"\r\n")) < 0:
            self._fill()
        return self._take(end + 2)[:-2]

    def _take(self, count: int) -> bytes:
        while len(self._input) < count:
            self._fill()
        taken = bytes(self._input[:count])
        del self._input[:count]
        return taken

    def _fill(self) -> None:
        assert self._socket is not None
        deadline = time.monotonic() + PATIENCE
        while not select.select([self._socket], [], [], REPORT_EVERY)[0]:
            self._reporter.maybe()
            if time.monotonic() > deadline:
                raise Broken(f"no reply for {PATIENCE:g} s")
        try:
            received = self._socket.recv(1 << 16)
        except OSError as error:
            raise Broken(str(error)) from error
        if not received:
            raise Broken("closed by the other side")
        self._reporter.heard()
        self._input += received


class Reporter:
    """Counts, and says so ten times a second."""

    def __init__(self) -> None:
        self.requests = 0
        self._gaps: list[tuple[float, float]] = []
        self._slowest = 0.0
        self._heard_at = self._said_at = time.monotonic()

    def heard(self) -> None:
        """Bytes came: what was silence until now is over."""
        now = time.monotonic()
        gap = now - self._heard_at
        self._slowest = max(self._slowest, gap)
        if gap >= TELLING_GAP:
            self._gaps.append((self._heard_at, now))
        self._heard_at = now

    def maybe(self) -> None:
        now = time.monotonic()
        if now - self._said_at < REPORT_EVERY:
            return
        say(
            now=round(now, 4),
            requests=self.requests,
            slowest_ms=round(self._slowest * 1e3, 2),
            silent_ms=round((now - self._heard_at) * 1e3, 2),
            gaps=[[round(begin, 4), round(end, 4)] for begin, end in self._gaps],
        )
        self._said_at, self._slowest = now, 0.0
        self._gaps.clear()


class Client:
    """The work: load, write and read, look at everything again."""

    def __init__(self, host: str, port: int, keys: int, seed: int) -> None:
        self.reporter = Reporter()
        self.wire = Wire(host, port, self.reporter)
        self.ledger = Ledger(keys)
        self.keys = keys
        self.failed = 0
        self.writes = 0
        self.problems: deque[str] = deque(maxlen=10)
        self._random = random.Random(seed)

    def load(self) -> None:
        for start in range(0, self.keys, LOAD_BATCH):
            self._batch([(key, True) for key in range(start, min(start + LOAD_BATCH, self.keys))])

    def work(self) -> None:
        """Write and read until stdin has ended."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            keys = [self._random.randrange(self.keys) for _ in range(DEPTH)]
            self._batch([(key, at % 2 == 0) for at, key in enumerate(keys)])
            self.reporter.maybe()

    def _batch(self, plan: list[tuple[int, bool]]) -> None:
        """Write or read these keys; every reply is looked at. A broken connection is made anew."""
        ledger = self.ledger
        commands: list[tuple[str, ...]] = []
        expected: list[tuple[int, bool, int]] = []
        for key, write in plan:
            if write:
                commands.append(("SET", f"key:{key}", ledger.next_value(key)))
            else:
                commands.append(("GET", f"key:{key}"))
            expected.append((key, write, ledger.sent[key]))
        answered = 0
        try:
            self.wire.send(commands)
            for key, write, number in expected:
                reply = self.wire.receive()
                answered += 1
                self.reporter.requests += 1
                if write:
                    self._written(key, number, reply)
                # The server works in order, and so do the replies: a read sees at least what has
                # been acknowledged by now, at most what was sent before it.
                elif not ledger.possible(key, reply, ledger.acked[key], number):
                    self._fail(f"GET key:{key} gave {_brief(reply)}, not value {number}")
        except Broken as error:
            self.reporter.requests += len(expected) - answered
            self.failed += len(expected) - answered
            self.problems.append(f"connection broke: {error}")
            self.wire.connect()

    def _written(self, key: int, number: int, reply: Reply) -> None:
        if reply == b"OK":
            self.ledger.acked[key] = number
            self.writes += 1
        else:
            self._fail(f"SET key:{key} gave {_brief(reply)}")

    def _fail(self, problem: str) -> None:
        self.failed += 1
        self.problems.append(problem)

    def count_lost(self) -> int:
        """Read every key; the number of those whose last acknowledged write isn't there."""
        lost = 0
        for start in range(0, self.keys, LOAD_BATCH):
            keys = range(start, min(start + LOAD_BATCH, self.keys))
            self.wire.send([("MGET", *(f"key:{key}" for key in keys))])
            values = self.wire.receive()
            if not isinstance(values, list):
                values = [values] * len(keys)
            for key, value in zip(keys, values, strict=True):
                oldest, newest = self.ledger.acked[key], self.ledger.sent[key]
                if not self.ledger.possible(key, value, oldest, newest):
                    lost += 1
                    self.problems.append(f"key:{key} is {_brief(value)}, not value {oldest}")
        return lost


def _brief(reply: Reply) -> str:
    text = str(reply)
    return text if len(text) <= 60 else text[:57] + "..."


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write, read, remember, compare.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    client = Client(options.host, options.port, options.keys, options.seed)
    error = ""
    lost = -1
    try:
        client.wire.connect()
        client.load()
        say(loaded=options.keys)
        client.work()
        lost = client.count_lost()
    except Broken as broken:
        error = str(broken)
    except KeyboardInterrupt:
        return 130
    say(
        done=not error,
        error=error,
        requests=client.reporter.requests,
        writes=client.writes,
        failed_requests=client.failed,
        # What couldn't be looked at counts as lost.
        lost_writes=lost if lost >= 0 else options.keys,
        reconnects=max(client.wire.connections - 1, 0),
        problems=list(client.problems),
    )
    return 0 if not error else 1


if __name__ == "__main__":
    sys.exit(main())
