"""The processes at both ends of a lane that is measured; throughput.py starts them.

python -m benchmarks.lane_ends pour MIB              random bytes to standard output
python -m benchmarks.lane_ends hold KIND MIB         memory of a kind; says "ready", keeps it until its input ends
python -m benchmarks.lane_ends receive LANE FOLDER bytes|pages    a destination's agent: opens a lane, reads it
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.pagecache.store import PageStore
from runtime.pagesource.receive import PageReceiver
from transport.lane_handover import LaneServer
from transport.lane_tls import Identity, TlsListener
from transport.lanes import LaneReader

BLOCK = 8 << 20
PAGE = 4096
MEMORY = ("incompressible", "compressible", "zero", "duplicates")
_DISTINCT = 64
"""Pages that memory rich in duplicates consists of."""


def pour(mib: int) -> None:
    block = memoryview(os.urandom(BLOCK))
    left, at = mib << 20, 0
    while left:
        done = os.write(1, block[at : at + min(left, 1 << 20)])
        left, at = left - done, (at + done) % BLOCK


def hold(kind: str, mib: int) -> None:
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for block in _blocks(kind, mib):
        memory.write(block)
    os.write(1, b"ready\n")
    sys.stdin.read()


def _blocks(kind: str, mib: int) -> Iterator[bytes]:
    """MIB blocks of 1 MiB."""
    size = 1 << 20
    few = [os.urandom(PAGE) for _ in range(_DISTINCT)]
    for number in range(mib):
        if kind == "incompressible":
            yield os.urandom(size)
        elif kind == "compressible":
            # As half of many a heap: text and small numbers between what is random; no two pages equal.
            yield b"".join(
                os.urandom(PAGE // 4) + b"value %09d\n" % (number * 256 + n) * (PAGE * 3 // 4 // 16)
                for n in range(size // PAGE)
            )
        elif kind == "zero":
            yield bytes(size)
        else:
            yield b"".join(few[(number * 7 + n) % _DISTINCT] for n in range(size // PAGE))


def receive(kind: str, folder: str, what: str) -> None:
    """Says its offer, then how much came."""
    ask = json.loads(sys.stdin.readline())
    there = Identity.new()
    listener = None
    with LaneServer(Path(folder)) as server:
        token = server.expect()
        if kind == "tls":
            listener = TlsListener("127.0.0.1", there, bytes.fromhex(ask["certificate"]))
        offer = {
            "token": token,
            "path": str(server.path),
            "port": listener.port if listener else 0,
            "certificate": there.certificate.hex(),
        }
        print(json.dumps(offer), flush=True)
        reader: LaneReader = listener.accept(10) if listener else server.accept(token, 10)
        count = _pages(reader.fd) if what == "pages" else _bytes(reader.fd)
        reader.finish(10)
    print(count, flush=True)


def _bytes(fd: int) -> int:
    buffer = bytearray(1 << 20)
    total = 0
    while count := os.readv(fd, [buffer]):
        total += count
    return total


def _pages(fd: int) -> int:
    """Bytes of memory that the pages stand for."""
    with PageStore() as store:
        counts = PageReceiver(fd, store).until_mark().counts
        assert not os.read(fd, 1)
    return (counts.pages + counts.zeros + counts.same) * PAGE


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "pour":
        pour(int(rest[0]))
    elif what == "hold":
        hold(rest[0], int(rest[1]))
    else:
        receive(rest[0], rest[1], rest[2])


if __name__ == "__main__":
    main()
