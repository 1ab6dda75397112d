"""What a dump says of files that have lost the name by which they were opened (CRIU, images/remap-file-path.proto).

A removed file without any other name travels in the images (a "ghost"). One that still has another name gets a new one
for the dump's sake, `link_remap.N` beside the old, by which the restore opens it: so the file system changes while CRIU
dumps, after the tasks were frozen. Read without pycriu, since this is asked inside the frozen window.
"""

from __future__ import annotations

import struct

from images.errors import Corrupt

NAME = "remap-fpath.img"
_HEADER = 8  # two magic numbers
_TYPE = 0x18  # field 3, varint: remap_type
_LINKED = 0


def has_links(data: bytes) -> bool:
    """Whether CRIU made new names in the file system. DATA: the whole image. Raises Corrupt."""
    at = _HEADER
    while at < len(data):
        if at + 4 > len(data):
            raise _corrupt()
        (size,) = struct.unpack_from("I", data, at)
        entry = data[at + 4 : at + 4 + size]
        if len(entry) < size:
            raise _corrupt()
        if _kind(entry) == _LINKED:
            return True
        at += 4 + size
    return False


def _kind(entry: bytes) -> int:
    """The remap_type; LINKED where it is left out, as in images of old."""
    at, found = 0, _LINKED
    while at < len(entry):
        key, at = _varint(entry, at)
        value, at = _varint(entry, at)
        if key == _TYPE:
            found = value
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
        shift += 7
    raise _corrupt()


def _corrupt() -> Corrupt:
    return Corrupt(doing="reading", target=NAME, why="it is cut off or not what it should be")
