"""Export and import: a stored checkpoint as a checkpoint stream, and back."""

from __future__ import annotations

import os
from dataclasses import replace

from images.bundle_stream import StreamReader, StreamWriter
from images.checkpoint import Checkpoint
from images.draft import Draft
from images.errors import Corrupt
from images.manifest import Manifest
from images.moving import STALL
from images.parts import KINDS, PartInfo
from images.receive import receive


def write_stream(
    checkpoint: Checkpoint,
    fd: int,
    *,
    digest: bool = True,
    stall: float = STALL,
    cancel_fd: int | None = None,
) -> int:
    """Write a checkpoint to fd, which isn't closed; returns the bytes of payload.

    digest: hash on the way; a part that isn't what the manifest says then raises Corrupt, and the
    stream tells its reader so. False only where the reader compares with the manifest itself.
    """
    with StreamWriter(fd, digest=digest, stall=stall, cancel_fd=cancel_fd) as writer:
        try:
            writer.manifest(checkpoint.manifest.to_bytes())
            for part in checkpoint.manifest.parts:
                source = checkpoint.open_part(part)
                try:
                    written = writer.add_file(part.kind, part.name, source)
                finally:
                    os.close(source)
                _compare(part, written)
            writer.end()
        except BaseException as error:
            writer.abort(f"{type(error).__name__}: {error}")
            raise
        return writer.size


def read_stream(
    fd: int, draft: Draft, *, stall: float = STALL, cancel_fd: int | None = None
) -> tuple[Manifest, tuple[PartInfo, ...]]:
    """Fill a draft from fd: the manifest and the parts, both for draft.publish().

    Parts that the manifest lists must be those that came, size and digest; a manifest that lists
    none (of a dump that was being made) accepts what came.
    """
    sinks = {kind: draft.sink(kind, digest=True) for kind in KINDS}
    with StreamReader(fd, stall=stall, cancel_fd=cancel_fd) as reader:
        received = receive(reader, sinks)
    manifest = Manifest.from_bytes(received.manifest)
    written = {**{(i.kind, i.name): i for s in sinks.values() for i in s.written.values()}}
    if manifest.parts:
        listed = {(part.kind, part.name): part for part in manifest.parts}
        odd = sorted(f"{kind}/{name}" for kind, name in listed.keys() ^ written.keys())
        if odd:
            raise Corrupt(
                doing="reading",
                target="the checkpoint stream",
                why=f"its parts are not those of its manifest: {', '.join(odd)[:200]}",
            )
        for key, part in listed.items():
            _compare(part, written[key])
    parts = tuple(written.values())
    return replace(manifest, name=draft.name), parts


def _compare(listed: PartInfo, found: PartInfo) -> None:
    if listed.size != found.size:
        why = f"it has {found.size} bytes instead of {listed.size}"
    elif None not in (listed.digest, found.digest) and listed.digest != found.digest:
        why = "its content is not what the manifest says"
    else:
        return
    raise Corrupt(doing="copying", target=listed.label, why=why)
