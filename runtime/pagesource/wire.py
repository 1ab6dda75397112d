"""The records of a page stream; no I/O here.

    record   head (16 bytes), entries, payload
    head     kind u8, encoding u8, 0 u16, task u32, entries u32, payload bytes u32; all little-endian

    PAGES    entries: extents; payload: the pages' bytes one after the other, plain or one zstd frame
    ZEROS    entries: extents; these pages are zeros now
    GONE     entries: extents; these pages are not mapped any more, or not ours to carry any more
    SAME     entries: extents; payload: an address and a task for each page, which is equal to that page as last told
             by an earlier record
    ENDED    no entries: the task has gone with all its pages
    OWED     entries: extents; these pages will come later, when they are asked for (lazy moves)
    SHARED   no entries; payload: the inode at the source, whether it may be sealed, the name. From here on the task's
             number is that of a shared object, whose pages have offsets in place of addresses
    MARK     no entries; payload: counts of all records so far and their digest

    extent   u64: address of the first page, with (pages - 1) in its lower 12 bits

A task's pages in private mappings of files travel under a number of their own (COPIES_FROM and the task's): they are
put in place in another way, and one of zeros is a page like any other, where none would be the file's.

Order matters: each record replaces what earlier ones said of the same pages. A stream has no end of its own: the two
sides agree on which mark is the last, and compare it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import chain

from runtime.errors import BadInput

PAGE = 4096
HEAD = struct.Struct("<BBHIII")
_PLACE = struct.Struct("<QI")
_MARK = struct.Struct("<QQQQQ32s")
_SHARED = struct.Struct("<IB")
SHARED_FROM = 1 << 31
"""Numbers of shared objects begin here: no process has such an id."""
COPIES_FROM = 1 << 30
"""Likewise, of what tasks have written to private mappings of files."""
MAX_NAME = 249
"""Bytes of a memfd's name (memfd_create(2))."""
MAX_EXTENT = 4096
"""Pages: what 12 bits can say."""
MAX_PAYLOAD = 1 << 20
"""Bytes of pages in one record: small enough to stay in a CPU's second-level cache between reading, looking and
writing; larger ones measured no faster."""
MAX_ENTRIES = 4096
_ADDRESS_END = 1 << 56
Range = tuple[int, int]
Place = tuple[int, int]
"""Address and task of a page."""


class Kind(enum.IntEnum):
    PAGES = 1
    ZEROS = 2
    GONE = 3
    SAME = 4
    ENDED = 5
    MARK = 6
    OWED = 7
    SHARED = 8


class Encoding(enum.IntEnum):
    PLAIN = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Head:
    kind: Kind
    encoding: Encoding
    task: int
    entries: int
    payload: int

    @property
    def entries_size(self) -> int:
        return self.entries * 8


@dataclass(frozen=True, slots=True)
class Shared:
    """inode: at the source, by which CRIU's images name it; sealable: MFD_ALLOW_SEALING; name: of the memfd."""

    inode: int
    sealable: bool
    name: bytes


@dataclass(slots=True)
class Counts:
    """Of all records before a mark. In pages, but for records."""

    records: int = 0
    pages: int = 0
    zeros: int = 0
    same: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """digest: blake3 over all records so far as they were on the wire, marks included; zeros if not computed."""

    counts: Counts
    digest: bytes


def is_copies(task: int) -> bool:
    """Whether the number TASK is that of a task's pages in private mappings of files."""
    return COPIES_FROM <= task < SHARED_FROM


def build_head(
    kind: Kind, task: int, entries: int, payload: int, encoding: Encoding = Encoding.PLAIN
) -> bytes:
    return HEAD.pack(kind, encoding, 0, task, entries, payload)


def parse_head(data: bytes) -> Head:
    """Raises BadInput for what isn't a head of this version, or is larger than records may be."""
    kind, encoding, zero, task, entries, payload = HEAD.unpack(data)
    try:
        head = Head(Kind(kind), Encoding(encoding), task, entries, payload)
    except ValueError:
        raise _bad(f"a record of kind {kind}, encoding {encoding}") from None
    if zero or entries > MAX_ENTRIES or payload > MAX_PAYLOAD:
        raise _bad(f"a {head.kind.name} record of {entries} entries and {payload} bytes")
    with_payload = head.kind in (Kind.PAGES, Kind.SAME, Kind.MARK, Kind.SHARED)
    with_entries = head.kind not in (Kind.ENDED, Kind.MARK, Kind.SHARED)
    if bool(payload) != with_payload or bool(entries) != with_entries:
        raise _bad(f"a {head.kind.name} record of {entries} entries and {payload} bytes")
    if head.kind is Kind.MARK and payload != _MARK.size:
        raise _bad(f"a mark of {payload} bytes")
    if head.kind is Kind.SHARED and payload > _SHARED.size + MAX_NAME:
        raise _bad(f"a name of {payload} bytes")
    if head.encoding is not Encoding.PLAIN and head.kind is not Kind.PAGES:
        raise _bad(f"an encoded {head.kind.name} record")
    return head


def extents(runs: Iterable[Range]) -> list[int]:
    """RUNS as extents."""
    out = []
    for start, end in runs:
        pages = (end - start) // PAGE
        while pages > MAX_EXTENT:
            out.append(start | (MAX_EXTENT - 1))
            start += MAX_EXTENT * PAGE
            pages -= MAX_EXTENT
        out.append(start | (pages - 1))
    return out


def build_extents(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def parse_extents(data: bytes) -> list[Range]:
    """Raises BadInput for addresses that no task has."""
    out = []
    for number in struct.unpack(f"<{len(data) // 8}Q", data):
        start = number & ~(PAGE - 1)
        end = start + ((number & (PAGE - 1)) + 1) * PAGE
        if end > _ADDRESS_END:
            raise _bad(f"pages at {start:#x}")
        out.append((start, end))
    return out


def build_places(places: Sequence[Place]) -> bytes:
    return struct.pack("<" + "QI" * len(places), *chain.from_iterable(places))


def parse_places(data: bytes, count: int) -> list[Place]:
    """Those of COUNT pages. Raises BadInput for addresses that no task has, and for another number of places."""
    if len(data) != count * _PLACE.size:
        raise _bad(f"{len(data)} bytes of places for {count} pages")
    places = list(_PLACE.iter_unpack(data))
    for address, _ in set(places):
        if address % PAGE or address >= _ADDRESS_END:
            raise _bad(f"pages at {address:#x}")
    return places


def build_shared(shared: Shared) -> bytes:
    return _SHARED.pack(shared.inode, shared.sealable) + shared.name


def parse_shared(data: bytes) -> Shared:
    """Raises BadInput."""
    if len(data) < _SHARED.size:
        raise _bad(f"a shared object told in {len(data)} bytes")
    inode, sealable = _SHARED.unpack_from(data)
    name = data[_SHARED.size :]
    if sealable > 1 or b"\0" in name:
        raise _bad("a shared object that can't be")
    return Shared(inode, bool(sealable), name)


def build_mark(mark: Mark) -> bytes:
    return _MARK.pack(*astuple(mark.counts), mark.digest)


def parse_mark(data: bytes) -> Mark:
    *counts, digest = _MARK.unpack(data)
    return Mark(Counts(*counts), digest)


def _bad(what: str) -> BadInput:
    return BadInput(
        doing="receiving", target="pages", why=f"{what}: not what this ckpt sends",
        hint="use the same ckpt on both sides",
    )  # fmt: skip
