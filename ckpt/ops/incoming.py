"""Parts of kind "files" on their way in: each is applied where it belongs while it comes.

upper-NNN.tree   rounds over the upper directory, in the order in which they come
tmpfs-KEY-NNN.tree, volume-NAME-NNN.tree   the same for a tmpfs, a named volume
logs-NNN.tree    and for the logs
layer-DIGEST.tree   a read-only layer that comes along
late.json        what was known last (ckpt/ops/late.py)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ckpt.ops.host import Host
from ckpt.ops.late import MAX_SIZE as MAX_LATE
from ckpt.ops.late import NAME as LATE
from ckpt.ops.late import Late
from ckpt.ops.trees import LOGS, TMPFS, UPPER, VOLUME
from images.manifest import Manifest
from images.moving import Mover
from images.parts import Part, Sink
from runtime.errors import BadInput, NotFound
from runtime.tree.receive import receive

if TYPE_CHECKING:
    from ckpt.ops.arrival import Arrival

_UPPER = f"{UPPER}-"
_TMPFS = f"{TMPFS}-"
_VOLUME = f"{VOLUME}-"
_LOGS = f"{LOGS}-"
_LAYER = "layer-"


class FilesSink:
    """Applies trees to their directories in the order in which they come, and takes in layers."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    def open(self, name: str) -> Part:
        if name.startswith(_UPPER):
            return _TreePart(self._arrival.apply_upper)
        if name.startswith(_TMPFS):
            key = name.removeprefix(_TMPFS).partition("-")[0]
            if key in self._arrival.tmpfs:
                return _TreePart(lambda fd: self._arrival.apply_tmpfs(key, fd))
        if name.startswith(_LOGS):
            return _TreePart(self._arrival.apply_logs)
        if name.startswith(_VOLUME):
            volume = name.removeprefix(_VOLUME).rpartition("-")[0]
            return _TreePart(lambda fd: self._arrival.volumes.apply(volume, fd))
        if name == LATE:
            return _LatePart(self._arrival)
        if name.startswith(_LAYER):
            return layer_part(self._arrival.host, self._arrival.manifest, name)
        raise NotFound(doing="receiving", target=name, why="nothing of that name is known here")


class _LatePart:
    """Reads the late part, and gives it to the arrival when it is whole."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._data = b""

    def take(self, mover: Mover, source: int, count: int, hashers: Any = ()) -> None:
        if len(self._data) + count > MAX_LATE:
            raise BadInput(doing="receiving", target=LATE, why="it is too large")
        data = mover.read_exact(source, count)
        for hasher in hashers:
            hasher.update(data)
        self._data += data

    def close(self) -> None:
        self._arrival.late = Late.from_bytes(self._data)

    def abandon(self) -> None:
        pass


class LayersAside:
    """A sink that puts layers where they belong, and everything else into another sink."""

    def __init__(self, host: Host, manifest: Manifest, sink: Sink) -> None:
        self._host = host
        self._manifest = manifest
        self._sink = sink

    def open(self, name: str) -> Part:
        if name.startswith(_LAYER):
            return layer_part(self._host, self._manifest, name)
        return self._sink.open(name)


def layer_part(host: Host, manifest: Manifest, name: str) -> Part:
    """Takes in a layer that comes along; one that is here already is read and dropped."""
    digest = name[len(_LAYER) :].removesuffix(".tree")
    if digest not in manifest.rootfs.layers:
        raise NotFound(
            doing="receiving", target=f"layer {digest}", why="the container has none such"
        )

    def take(fd: int) -> None:
        if host.layers.has(digest):
            while os.read(fd, 1 << 20):
                pass
            return
        with host.layers.adopt(digest) as tree:
            receive(fd, tree)

    return _TreePart(take)


class _TreePart:
    """A part that a thread applies while it comes, through a pipe."""

    def __init__(self, apply: Callable[[int], None]) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._faults: list[BaseException] = []
        self._applier = threading.Thread(target=self._apply, args=(apply,), name="files")
        self._applier.start()

    def _apply(self, apply: Callable[[int], None]) -> None:
        try:
            apply(self._read)
        except BaseException as error:
            self._faults.append(error)
        finally:
            os.close(self._read)

    def take(self, mover: Mover, source: int, count: int, hashers: Any = ()) -> None:
        try:
            mover.move(source, self._write, count, hashers=hashers)
        except Exception:
            if self._faults:
                raise self._faults[0] from None
            raise

    def close(self) -> None:
        os.close(self._write)
        self._applier.join()
        if self._faults:
            raise self._faults[0]

    def abandon(self) -> None:
        os.close(self._write)
        self._applier.join()
