"""What images.inspect finds, as plain values: dataclasses.asdict gives what --json prints.

Sizes are bytes, times microseconds, ids as they are inside of the container.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Thread:
    tid: int
    comm: str


@dataclass(frozen=True, slots=True)
class MemoryKind:
    """All mappings of one kind in one process.

    kind: anonymous, heap, stack, file private, file shared, shared memory, kernel. size: what is
    mapped; dumped: what is in the images; lazy: what is yet to be fetched; parent: what lies in an
    earlier dump. Shared memory is dumped once, see SharedMemory.
    """

    kind: str
    mappings: int
    size: int
    dumped: int
    lazy: int
    parent: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One descriptor. kind: CRIU's name in lower case (reg, pipe, unixsk, inetsk, tty, ...).

    what: path, address or other description. mode: "r", "w", "rw" and further flags. position and
    size are None where they mean nothing. deleted: it has no name any more; its content is in the
    dump (a ghost file) or reached through another name.
    """

    fd: int
    kind: str
    what: str
    mode: str
    position: int | None
    size: int | None
    deleted: bool
    close_on_exec: bool


@dataclass(frozen=True, slots=True)
class Process:
    """state: running, dead (a zombie), stopped. uid, gid: the effective ones."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    comm: str
    state: str
    uid: int | None
    gid: int | None
    executable: str
    directory: str
    threads: tuple[Thread, ...]
    files: tuple[OpenFile, ...]
    memory: tuple[MemoryKind, ...]

    @property
    def dumped(self) -> int:
        return sum(kind.dumped for kind in self.memory)


@dataclass(frozen=True, slots=True)
class Socket:
    """family: unix, inet, inet6. owners: "PID:FD". Queues are the bytes that wait in them."""

    id: int
    family: str
    type: str
    protocol: str
    state: str
    local: str
    remote: str
    receive_queue: int
    send_queue: int
    owners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe or FIFO. queue: bytes in it; readers, writers: "PID:FD"."""

    id: int
    path: str
    queue: int
    readers: tuple[str, ...]
    writers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """A shared memory object, in the dump once. name: "" unless it is a memfd."""

    id: int
    name: str
    dumped: int
    lazy: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A dump. images: size by name. times, counters: CRIU's statistics, if they were kept."""

    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...]
    pipes: tuple[Pipe, ...]
    shared_memory: tuple[SharedMemory, ...]
    images: dict[str, int]
    times: dict[str, int]
    counters: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.images.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)
