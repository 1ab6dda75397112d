"""`ckpt restore`: verify, prepare, let CRIU resume."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt.ops.arrival import Arrival
from ckpt.ops.dump import opened
from ckpt.ops.host import Host
from ckpt.ops.incoming import LayersAside
from ckpt.ops.outgoing import send_layers
from images.bundle_stream import StreamReader, StreamWriter
from images.checkpoint import Checkpoint
from images.draft import Draft
from images.errors import Corrupt, ImageFault, Truncated
from images.manifest import Manifest
from images.moving import STALL, Mover
from images.parts import CRIU, FILES, PartInfo, writing
from images.receive import receive
from images.rewrite import FilteredSink, FilteredSource
from images.spool import Spool
from runtime.container.record import Container, check_name


@dataclass(frozen=True, slots=True)
class Restored:
    """notes: what is different from before, a line each."""

    container: Container
    notes: tuple[str, ...]


def from_store(host: Host, checkpoint: str, *, name: str = "", verify: bool = True) -> Restored:
    """Restore from the store. Raises Corrupt when VERIFY finds a byte that is not the dump's."""
    host.ready()
    with host.store.open(checkpoint) as stored:
        if verify:
            problems = stored.verify()
            if problems:
                raise Corrupt(
                    doing="restoring",
                    target=f"checkpoint {checkpoint}",
                    why="; ".join(str(problem) for problem in problems[:3]),
                    hint=f"ckpt checkpoints verify {checkpoint}",
                )
        with Arrival(host, stored.manifest, name=name) as arrival:
            arrival.check()
            arrival.begin()
            _stored_files(stored, arrival)
            arrival.restore(FilteredSource(stored.source(), arrival.rewriter()))
            arrival.go()
            arrival.tell_started()
            return Restored(arrival.container, tuple(arrival.notes))


def _stored_files(stored: Checkpoint, arrival: Arrival) -> None:
    sink = arrival.files()
    for part in sorted(stored.manifest.parts, key=lambda part: part.name):
        if part.kind != FILES:
            continue
        fd = stored.open_part(part)
        try:
            with (
                Mover(doing="applying", target=part.label) as mover,
                writing(sink, part.name) as taken,
            ):
                taken.take(mover, fd, part.size)
        finally:
            os.close(fd)


class Incoming:
    """A checkpoint stream on its way in: a thread takes it apart while the restore goes on.

    Used by `ckpt restore -` and by the agent. The images go into memory, the files into place.
    """

    def __init__(
        self, fd: int, arrive: Callable[[Manifest], Arrival], *, stall: float = STALL
    ) -> None:
        """STALL: seconds in which nothing may come."""
        self._fd = fd
        self._stall = stall
        self._arrive = arrive
        self.spool = Spool(release_as_read=True)
        self.arrival: Arrival | None = None
        self.began = threading.Event()
        self.ended = threading.Event()
        self.fault: BaseException | None = None
        self.size = 0
        self.parts: tuple[PartInfo, ...] = ()
        self._cancel = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="incoming", daemon=True)

    def cancel(self) -> None:
        """End it now, from any thread: whoever waits sees Cancelled."""
        if self._cancel >= 0:
            os.eventfd_write(self._cancel, 1)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong with the stream."""
        if self.fault is not None:
            raise self.fault

    def wait_begun(self) -> Arrival:
        """Until the manifest is here and the container has its place."""
        self.began.wait()
        self.check()
        assert self.arrival is not None
        return self.arrival

    def wait_layers(self) -> None:
        """Until every layer is here; they come before all else."""
        arrival = self.wait_begun()
        while not all(map(arrival.host.layers.has, arrival.manifest.rootfs.layers)):
            self.check()
            if self.ended.wait(0.01):
                self.check()
                arrival.check()

    def wait_ended(self, timeout: float | None = None) -> None:
        """Until the stream is whole. Raises what was wrong with it."""
        if not self.ended.wait(timeout):
            raise Truncated(
                doing="receiving", target="the checkpoint stream", why="it doesn't end", retry=True
            )
        self.check()

    def close(self) -> None:
        if self._cancel < 0:
            return
        self._thread.join(5)
        self.spool.close()
        os.close(self._cancel)
        self._cancel = -1

    def _run(self) -> None:
        try:
            sinks = _Sinks(self)
            with StreamReader(self._fd, stall=self._stall, cancel_fd=self._cancel) as reader:
                received = receive(reader, sinks, on_manifest=self._on_manifest)
            self.size = received.size
            self.parts = received.parts
            self.spool.end()
        except BaseException as error:
            self.fault = error
            if isinstance(error, ImageFault):
                self.spool.fail(error)
            else:
                self.spool.fail(
                    Truncated(doing="receiving", target="the checkpoint stream", why=str(error))
                )
        finally:
            self.began.set()
            self.ended.set()

    def _on_manifest(self, data: bytes) -> None:
        if self.arrival is None:
            self.arrival = self._arrive(Manifest.from_bytes(data))
            self.began.set()


class _Sinks(dict):  # type: ignore[type-arg]
    """Sinks by kind; they exist once the manifest has come."""

    def __init__(self, incoming: Incoming) -> None:
        super().__init__()
        self._incoming = incoming

    def __missing__(self, kind: str) -> object:
        arrival = self._incoming.arrival
        assert arrival is not None
        if kind == CRIU:
            return FilteredSink(self._incoming.spool, arrival.rewriter())
        return arrival.files()

    def __contains__(self, kind: object) -> bool:
        return kind in (CRIU, FILES)


def from_stream(host: Host, fd: int, *, name: str = "") -> Restored:
    """Restore from a checkpoint stream on FD, keeping nothing on disk in between."""
    host.ready()
    made: list[Arrival] = []

    def arrive(manifest: Manifest) -> Arrival:
        arrival = Arrival(host, manifest, name=name)
        made.append(arrival)
        arrival.check_stream()
        arrival.begin()
        return arrival

    incoming = Incoming(fd, arrive)
    incoming.start()
    try:
        arrival = incoming.wait_begun()
        incoming.wait_layers()
        # All must be here and right before anything runs; CRIU may start on it meanwhile.
        arrival.restore(incoming.spool.source(), check=incoming.check)
        incoming.wait_ended()
        arrival.go()
        arrival.tell_started()
        return Restored(arrival.container, tuple(arrival.notes))
    finally:
        for arrival in made:
            arrival.close()
        incoming.close()


def from_file(host: Host, path: Path, *, name: str = "") -> Restored:
    """Restore from a checkpoint stream in a file."""
    with opened(path) as fd:
        return from_stream(host, fd, name=name)


def export(host: Host, stored: Checkpoint, fd: int) -> None:
    """A stored checkpoint as a stream, with its layers."""
    with StreamWriter(fd, digest=True) as writer:
        try:
            writer.manifest(replace(stored.manifest, parts=()).to_bytes())
            send_layers(host, stored.manifest.rootfs.layers, writer)
            for part in stored.manifest.parts:
                source = stored.open_part(part)
                try:
                    writer.add_file(part.kind, part.name, source)
                finally:
                    os.close(source)
            writer.end()
        except BaseException as error:
            writer.abort(str(error))
            raise


def import_stream(host: Host, fd: int, *, name: str = "") -> Manifest:
    """A stream into the store; its layers into theirs."""
    drafts: list[Draft] = []
    manifests: list[Manifest] = []

    def begin(data: bytes) -> None:
        if not drafts:
            manifests.append(Manifest.from_bytes(data))
            drafts.append(
                host.store.begin(check_name(name or manifests[0].name, "checkpoint name"))
            )

    class Sinks(dict):  # type: ignore[type-arg]
        def __missing__(self, kind: str) -> object:
            sink = drafts[0].sink(kind, digest=True)
            self[kind] = sink if kind == CRIU else LayersAside(host, manifests[0], sink)
            return self[kind]

        def __contains__(self, kind: object) -> bool:
            return kind in (CRIU, FILES) and bool(drafts)

    try:
        with StreamReader(fd) as reader:
            receive(reader, Sinks(), on_manifest=begin)
        return drafts[0].publish(manifests[0])
    finally:
        for draft in drafts:
            draft.discard()
