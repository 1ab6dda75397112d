"""Small changes to images on their way: what is different at the destination.

A Rewriter maps names of images to functions from bytes to bytes. Only those few small images are
held in memory, whether they come by (FilteredSink, before a Spool) or lie in a store
(FilteredSource, before a DirectorySource); everything else passes untouched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from images.errors import BadInput, Corrupt
from images.image_file import build_image, parse_image
from images.moving import Hasher, Mover, os_fault
from images.parts import CRIU, Part, Sink
from images.sources import Pending, Reader, Source

MAX_REWRITTEN = 16 << 20
"""Bytes that a rewritten image may have."""

Rewrite = Callable[[bytes], bytes]
_ID_END = 1 << 32


def rewrite_userns(data: bytes, old_base: int, new_base: int) -> bytes:
    """A ``userns-*.img`` with its host ids moved from old_base to new_base.

    Its uid and gid maps (CRIU, images/userns.proto) are the only place of a dump with host ids:
    everything else has those that are valid inside. Raises Corrupt, or BadInput if the result
    would not be a range of ids.
    """
    name = "userns.img"
    entries = parse_image(data, name, "USERNS")
    if len(entries) != 1:
        raise Corrupt(doing="reading", target=name, why=f"{len(entries)} entries")
    for key in ("uid_map", "gid_map"):
        for extent in entries[0].get(key, []):
            lower = extent["lower_first"] - old_base + new_base
            outside = extent["lower_first"] < old_base
            if outside or lower < 0 or lower + extent["count"] > _ID_END:
                raise BadInput(
                    doing="moving the ids of",
                    target=name,
                    why=f"{extent['lower_first']} is not in the range that begins at {old_base}"
                    if outside
                    else f"{lower} to {lower + extent['count']} are no ids",
                )
            extent["lower_first"] = lower
    return build_image("USERNS", entries)


class Rewriter:
    """The rewrites of one restore, by name of image; the first that fits is used."""

    def __init__(self) -> None:
        self._rewrites: list[tuple[re.Pattern[str], Rewrite]] = []

    def __bool__(self) -> bool:
        """Whether there is anything to rewrite."""
        return bool(self._rewrites)

    def add(self, pattern: str, rewrite: Rewrite) -> None:
        """pattern: a regular expression for the whole name."""
        self._rewrites.append((re.compile(pattern), rewrite))

    def move_ids(self, old_base: int, new_base: int) -> None:
        """Give the user namespace another range of host ids."""
        self.add(r"userns-\d+\.img", lambda data: rewrite_userns(data, old_base, new_base))

    def find(self, name: str) -> Rewrite | None:
        for pattern, rewrite in self._rewrites:
            if pattern.fullmatch(name):
                return rewrite
        return None


class WholeSink(Sink, Protocol):
    """A sink that also takes small parts as bytes: a Spool, a StreamWriter's sink."""

    def put(self, name: str, data: bytes) -> object: ...


class FilteredSink:
    """Rewrites some parts on their way into another sink."""

    def __init__(self, sink: WholeSink, rewriter: Rewriter) -> None:
        self._sink = sink
        self._rewriter = rewriter

    def open(self, name: str) -> Part:
        rewrite = self._rewriter.find(name)
        if rewrite is None:
            return self._sink.open(name)
        return _HeldPart(self._sink, name, rewrite)


class _HeldPart:
    def __init__(self, sink: WholeSink, name: str, rewrite: Rewrite) -> None:
        self._sink = sink
        self._name = name
        self._rewrite = rewrite
        self._data = bytearray()

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        if len(self._data) + count > MAX_REWRITTEN:
            raise _too_large(self._name)
        data = mover.read_exact(source, count)
        for hasher in hashers:
            hasher.update(data)
        self._data += data

    def close(self) -> None:
        self._sink.put(self._name, self._rewrite(bytes(self._data)))

    def abandon(self) -> None:
        self._data.clear()


class FilteredSource:
    """Rewrites some images on their way out of a source that is whole."""

    def __init__(self, source: Source, rewriter: Rewriter) -> None:
        self._source = source
        self._rewriter = rewriter

    @property
    def news(self) -> int | None:
        return self._source.news

    def took_news(self) -> None:
        self._source.took_news()

    def open(self, name: str) -> Reader | None | Pending:
        reader = self._source.open(name)
        rewrite = self._rewriter.find(name)
        if rewrite is None or reader is None or isinstance(reader, Pending):
            return reader
        try:
            return _BytesReader(rewrite(_drain(reader, name)))
        finally:
            reader.close()


class _BytesReader:
    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def move(self, pipe: int) -> int | None:
        if not self._rest:
            return 0
        moved = os.write(pipe, self._rest)
        self._rest = self._rest[moved:]
        return moved

    def close(self) -> None:
        """Nothing is held."""


def _drain(reader: Reader, name: str) -> bytes:
    """What a reader would give to CRIU, by way of a pipe."""
    data = bytearray()
    out_of, into = os.pipe()
    try:
        os.set_blocking(into, False)
        while moved := reader.move(into):
            if len(data) + moved > MAX_REWRITTEN:
                raise _too_large(name)
            while moved:
                piece = os.read(out_of, moved)
                data += piece
                moved -= len(piece)
        if moved is None:
            raise BadInput(doing="rewriting", target=name, why="it has not arrived as a whole")
    except OSError as error:
        raise os_fault(error, doing="rewriting", target=name) from error
    finally:
        os.close(out_of)
        os.close(into)
    return bytes(data)


def _too_large(name: str) -> Corrupt:
    return Corrupt(
        doing="rewriting", target=f"{CRIU}/{name}", why=f"more than {MAX_REWRITTEN} bytes"
    )
