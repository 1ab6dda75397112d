"""Taking a checkpoint stream apart: each part into the sink of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from images.bundle_records import Ended, ManifestRecord, Note, PartClosed, PartOpened, Payload
from images.bundle_stream import StreamReader
from images.errors import BadInput
from images.parts import Part, PartInfo, Sink


@dataclass(frozen=True, slots=True)
class Received:
    """A stream that came whole. manifest: the last one; parts: the last of each name."""

    manifest: bytes
    parts: tuple[PartInfo, ...]
    size: int


def receive(
    reader: StreamReader,
    sinks: Mapping[str, Sink],
    *,
    on_manifest: Callable[[bytes], None] | None = None,
    on_note: Callable[[dict[str, object]], None] | None = None,
    on_part: Callable[[PartInfo], None] | None = None,
) -> Received:
    """Read the stream to its end; sinks is by kind and is looked up as parts come.

    The callbacks run in this thread, between records. on_manifest sees each manifest, the first
    before any part. After a failure no part is left open; what the sinks do with whole parts is
    theirs. Raises what StreamReader and the sinks raise.
    """
    open_parts: dict[int, Part] = {}
    parts: dict[tuple[str, str], PartInfo] = {}
    manifest = b""
    size = 0
    try:
        for record in reader:
            match record:
                case ManifestRecord(data):
                    manifest = data
                    if on_manifest is not None:
                        on_manifest(data)
                case PartOpened(part, kind, name, _):
                    if kind not in sinks:
                        raise BadInput(
                            doing="receiving", target=f"{kind}/{name}", why="not expected here"
                        )
                    open_parts[part] = sinks[kind].open(name)
                case Payload(part, _):
                    reader.take_payload(open_parts[part])
                case PartClosed(part, kind, name, length, digest):
                    open_parts[part].close()
                    del open_parts[part]
                    info = PartInfo(kind, name, length, digest)
                    parts[kind, name] = info
                    if on_part is not None:
                        on_part(info)
                case Note(message):
                    if on_note is not None:
                        on_note(message)
                case Ended(_, total):
                    size = total
    finally:
        for left in open_parts.values():
            left.abandon()
    return Received(manifest, tuple(parts.values()), size)
