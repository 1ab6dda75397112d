"""What gets dumped: one of everything that the inspection shows, and a counter that must go on.

usage: workload.py MEBIBYTES — anonymous memory, incompressible, verified on SIGUSR1
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import socket
import sys
import threading
import time

size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 1 << 20):
    memory[at : at + (1 << 20)] = os.urandom(1 << 20)


def digest() -> str:
    hasher = hashlib.blake2b()
    for start in range(0, size, 1 << 20):
        hasher.update(memory[start : start + (1 << 20)])
    return hasher.hexdigest()


before = digest()
shared = mmap.mmap(-1, 1 << 20)
shared[:5] = b"hello"

regular = open("/tmp/regular", "w+b", buffering=0)  # noqa: SIM115
regular.write(b"0123456789")
regular.seek(4)
deleted = open("/tmp/deleted", "w+b", buffering=0)  # noqa: SIM115
deleted.write(b"still here")
os.unlink("/tmp/deleted")

reader, writer = os.pipe()
os.write(writer, b"in the pipe")
near, far = socket.socketpair()
near.send(b"in the socket")
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.send(b"on the wire")
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))

child = os.fork()
if not child:
    os.setsid()
    while True:
        time.sleep(3600)

threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def check(*_: object) -> None:
    found = {
        "memory": digest() == before,
        "shared": shared[:5] == b"hello",
        "regular": regular.read() == b"456789",
        "deleted": os.pread(deleted.fileno(), 100, 0) == b"still here",
        "pipe": os.read(reader, 100) == b"in the pipe",
        "socket": far.recv(100) == b"in the socket",
        "wire": server.recv(100) == b"on the wire",
    }
    wrong = [name for name, good in found.items() if not good]
    with open("/tmp/verdict.new", "w") as file:
        file.write("wrong: " + " ".join(wrong) if wrong else "good")
    os.rename("/tmp/verdict.new", "/tmp/verdict")


signal.signal(signal.SIGUSR1, check)
count = 0
while True:
    count += 1
    with open("/tmp/count.new", "w") as file:
        file.write(str(count))
    os.rename("/tmp/count.new", "/tmp/count")
    time.sleep(0.005)
