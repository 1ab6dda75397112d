"""What a departure puts into its target, part by part: trees, layers, and CRIU's images on their way.

Most images pass straight through. A few small ones are held back until the dump is over: the inventory, with which a
restore that has begun early starts in earnest; what has to be looked at; and, where a carrier takes the memory along,
the page maps, which are rewritten.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ckpt.ops.host import Host
from images import remaps
from images.errors import Cancelled, ImageFault, NoSpace, StreamerFault
from images.lazy_entries import shared_of, task_of
from images.moving import Mover
from images.parts import CRIU, FILES, INVENTORY, Part, Sink
from images.pour import pour_bytes, pour_pipe
from runtime.tree.sync import Synchroniser


class Target(Protocol):
    """Where a checkpoint goes: a draft of the store, or a checkpoint stream."""

    def sink(self, kind: str) -> Sink: ...


def send_layers(host: Host, digests: Iterable[str], target: Target) -> int:
    """Layers as parts `layer-DIGEST.tree`; returns bytes of file content."""
    total = 0
    for digest in digests:
        layer = Synchroniser(host.layers.path(digest))

        def write(fd: int, layer: Synchroniser = layer) -> int:
            return layer.round(fd, frozen=True).data_bytes

        total += part_by(target, f"layer-{digest}.tree", write)
    return total


def put_part(target: Target, kind: str, name: str, data: bytes) -> None:
    """A small part from memory."""
    with Mover(doing="copying", target=name) as mover:
        pour_bytes(target.sink(kind), name, data, mover)


def put_held(target: Target, held: Mapping[str, bytes]) -> None:
    """Images that were held back. A restore that has begun early starts in earnest when the inventory is there."""
    for name in sorted(held, key=lambda name: name == INVENTORY):
        put_part(target, CRIU, name, held[name])


def part_by(target: Target, name: str, write: Callable[[int], int]) -> int:
    """A part whose bytes WRITE puts into a pipe, in a thread of its own."""
    outer, inner = os.pipe2(os.O_CLOEXEC)
    results: list[int] = []
    faults: list[BaseException] = []

    def produce() -> None:
        try:
            results.append(write(inner))
        except BaseException as error:
            faults.append(error)
        finally:
            os.close(inner)

    producer = threading.Thread(target=produce, name=name)
    producer.start()
    try:
        with Mover(doing="copying", target=name) as mover:
            pour_pipe(target.sink(FILES), name, outer, mover)
    finally:
        os.close(outer)  # a producer that still writes gets EPIPE
        producer.join()
    if faults:
        raise faults[0]
    return results[0]


_HELD = (INVENTORY, remaps.NAME)


class Held:
    """A sink that keeps a few small images back, and tells when the first image is opened.

    page_maps: those of tasks are among them; shared: those of what tasks share as well.
    """

    def __init__(self, sink: Sink, *, page_maps: bool, shared: bool = False) -> None:
        self._sink = sink
        self._page_maps = page_maps
        self._shared = shared
        self.begun = threading.Event()
        self.held: dict[str, bytes] = {}
        self.fault: ImageFault | None = None
        """Why the target took no more."""

    def open(self, name: str) -> Part:
        self.begun.set()
        held = (
            name in _HELD
            or (self._page_maps and task_of(name) is not None)
            or (self._shared and shared_of(name) is not None)
        )
        return _HeldPart(self, name) if held else _Watched(self, self._sink.open(name))


class Beside:
    """Runs WORK in a thread while the block runs; its fault is the block's at the end."""

    def __init__(
        self, work: Callable[[Callable[[], None]], None] | None, check: Callable[[], None]
    ) -> None:
        self._work = work
        self._check = check
        self._fault: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._work is not None:
            self._thread = threading.Thread(target=self._run, name="last pages")
            self._thread.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None and error is None:
            raise self._fault

    def _run(self) -> None:
        assert self._work is not None
        try:
            self._work(self._check)
        except BaseException as fault:
            self._fault = fault


class _Watched:
    """A part of the target that notes why it took no more."""

    def __init__(self, owner: Held, part: Part) -> None:
        self._owner = owner
        self._part = part
        self.abandon = part.abandon

    def take(self, mover: Any, source: int, count: int, hashers: Any = ()) -> None:
        try:
            self._part.take(mover, source, count, hashers)
        except (NoSpace, StreamerFault, Cancelled) as fault:
            self._owner.fault = fault
            raise

    def close(self) -> None:
        try:
            self._part.close()
        except (NoSpace, StreamerFault, Cancelled) as fault:
            self._owner.fault = fault
            raise


class _HeldPart:
    def __init__(self, owner: Held, name: str) -> None:
        self._owner = owner
        self._name = name
        self._data = b""

    def take(self, mover: Any, source: int, count: int, hashers: Any = ()) -> None:
        self._data += mover.read_exact(source, count)

    def close(self) -> None:
        self._owner.held[self._name] = self._data

    def abandon(self) -> None:
        pass
