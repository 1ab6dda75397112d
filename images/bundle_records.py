"""The layout of the checkpoint stream's records: numbers, bounds, packing; no input or output.

    stream  = head, record*
    head    = "CKPTSTRM", u32 version, u32 flags (0)
    record  = u8 type, u8 flags, u16 0, u32 part, u64 length, then `length` bytes

Everything is little-endian. docs/image-format.md has the types and the rules of their order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3

MAGIC = b"CKPTSTRM"
VERSION = 1
HEAD = struct.Struct("<8sII")
RECORD = struct.Struct("<BBHIQ")
CLOSE = struct.Struct("<Q")
END = struct.Struct("<QQQ32s")

DIGEST_SIZE = 32
FLAG_DIGEST = 1
"""In PART_OPEN: the part's payload is hashed and PART_CLOSE has the digest."""

MAX_DATA = 1 << 30
MAX_PARTS = 1 << 20
MAX_OPEN_PARTS = 1 << 10


class Type(IntEnum):
    MANIFEST = 1
    PART_OPEN = 2
    DATA = 3
    PART_CLOSE = 4
    NOTE = 5
    END = 6
    ABORT = 7


MAX_LENGTH = {
    Type.MANIFEST: 16 << 20,
    Type.PART_OPEN: 1024,
    Type.DATA: MAX_DATA,
    Type.PART_CLOSE: CLOSE.size + DIGEST_SIZE,
    Type.NOTE: 1 << 20,
    Type.END: END.size,
    Type.ABORT: 4096,
}
"""Bytes that a record of each type may announce."""


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """The manifest, as manifest.Manifest.to_bytes made it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartOpened:
    part: int
    kind: str
    name: str
    digested: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """length bytes of a part follow; fetch them with StreamReader.move_payload or take_payload."""

    part: int
    length: int


@dataclass(frozen=True, slots=True)
class PartClosed:
    """The part is whole, and its size and (where there is one) digest were checked."""

    part: int
    kind: str
    name: str
    size: int
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class Note:
    """A message between the two ends, for the caller's own use."""

    message: dict[str, object]


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is whole. parts: how many; size: bytes of payload."""

    parts: int
    size: int


Record = ManifestRecord | PartOpened | Payload | PartClosed | Note | Ended


@dataclass(slots=True)
class Track:
    """One open part, on either side."""

    kind: str
    name: str
    size: int = 0
    hasher: blake3 | None = None
