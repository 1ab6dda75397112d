"""Unpack a tar archive into a layer's draft. Archives come from anywhere: none is trusted.

tarfile only parses headers, in its streaming mode; what is made on disk is made by Placer, which
never leaves the directory. Between tarfile and the file stands `_Metered`: while tarfile reads
headers it gets a few MiB at most, so that a header which declares gigabytes of name can't fill the
memory, nor can a chain of sparse maps.

tarfile takes a damaged header in the middle for the end of the archive, and doesn't miss the end
mark (two blocks of zeros). Both would pass a truncated archive for a whole one; so the end mark is
required, and whatever follows it must be zeros.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
import zlib
from typing import IO, Any, cast

import zstandard

from runtime.errors import BadInput, RuntimeFault, from_os_error
from runtime.tree.beneath import check_path, shown
from runtime.tree.meta import Meta
from runtime.tree.place import Placer
from runtime.tree.xattrs import check as check_xattrs
from runtime.tree.xattrs import travels

from .copy import Devices
from .limits import Budget, Limits

_BLOCK = 512
_STEP = 1 << 20
_BUFFER = 1 << 18  # read at once; far below the allowance for headers
_AFTER_END = 16 << 20  # zeros that pad an archive to its record size
_XATTR = "SCHILY.xattr."
_TIME = re.compile(r"(-?)(\d{1,12})(?:\.(\d+))?\Z")
_IMPLIED = Meta(0o755, 0, 0, 0)  # a directory that the archive uses but doesn't describe

_UNREADABLE = (
    tarfile.TarError,
    zlib.error,
    zstandard.ZstdError,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    UnicodeError,
    IndexError,
    KeyError,
)


def unpack(
    archive: IO[bytes], name: str, target_fd: int, limits: Limits, *, devices: Devices = "refuse"
) -> Budget:
    """Unpack `archive` (plain, gzip or zstd, told by its first bytes) below `target_fd`.

    Returns what was counted. Raises BadInput with the member's name and the reason; what was
    written by then is the caller's to throw away.
    """
    budget = Budget(limits)
    placer = Placer(target_fd)
    unpacker = _Unpacker(_decompressed(archive, name), placer, budget, limits, devices)
    try:
        unpacker.run()
        placer.finish()
    except _UNREADABLE as error:
        raise _bad(name, unpacker.member, error) from error
    except OSError as error:
        where = f"{name}: {unpacker.member}" if unpacker.member else name
        raise from_os_error(error, doing="unpacking", target=where) from error
    finally:
        placer.close()
    return budget


def _bad(name: str, member: str, error: Exception) -> RuntimeFault:
    why = str(error) or "it is damaged"
    if isinstance(error, EOFError):
        why = "it is truncated"
    if isinstance(error, RecursionError):
        why = "its headers are nested too deep"
    hint = "pack it without device nodes" if "device" in why else ""
    where = f"{name}: {member}" if member else name
    return BadInput(doing="unpacking", target=where, why=why, hint=hint)


def _decompressed(archive: IO[bytes], name: str) -> IO[bytes]:
    source = io.BufferedReader(_Raw(archive), 1 << 18)
    magic = source.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=source, mode="rb"))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        return decompressor.stream_reader(source, read_across_frames=True, closefd=False)
    if magic.startswith((b"BZh", b"\xfd7zXZ\0")):
        raise BadInput(
            doing="unpacking",
            target=name,
            why="only plain, gzip and zstd archives are known",
            hint="decompress it first",
        )
    return source


class _Raw(io.RawIOBase):
    """Whatever reads, as a raw stream that doesn't close it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Metered:
    """The decompressed archive for tarfile, with a bound on what it may read before telling us."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.allowance = 0

    def read(self, size: int) -> bytes:
        if size > self.allowance:
            raise ValueError("the description of a member is unreasonably large")
        parts = []
        while size > 0:
            part = self._source.read(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self.allowance -= len(part)
        return b"".join(parts)


class _Unpacker:
    def __init__(
        self,
        source: IO[bytes],
        placer: Placer,
        budget: Budget,
        limits: Limits,
        devices: Devices,
    ) -> None:
        self.member = ""
        self._placer = placer
        self._budget = budget
        self._limits = limits
        self._devices = devices
        self._source = _Metered(source)
        self._seen: set[bytes] = set()

    def run(self) -> None:
        ended = False

        class Header(tarfile.TarInfo):
            @classmethod
            def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
                nonlocal ended
                ended = len(buf) == _BLOCK and not any(buf)
                return super().frombuf(buf, encoding, errors)

        self._source.allowance = self._limits.header
        self._placer.directory(b"", _IMPLIED)
        with tarfile.open(
            fileobj=self._source,  # type: ignore[call-overload]
            mode="r|",
            tarinfo=Header,
            encoding="utf-8",
            errors="surrogateescape",
            bufsize=_BUFFER,
        ) as tar:
            while True:
                self._source.allowance = self._limits.header
                info = tar.next()
                tar.members = []  # it keeps every header otherwise
                if info is None:
                    break
                self.member = shown(os.fsencode(info.name))
                self._budget.entry(info.size)
                self._one(tar, info)
                self.member = ""
            if not ended:
                raise ValueError("it is truncated or damaged: its end mark is missing")
            self._drain(tar.fileobj)

    def _drain(self, reader: Any) -> None:
        """Read to the end, so that checksums are verified; only zeros may be there."""
        rest = _AFTER_END
        while rest > 0:
            self._source.allowance = _STEP + self._limits.header
            data = reader.read(_STEP)
            if not data:
                return
            rest -= len(data)
            if data.strip(b"\0"):
                break
        raise ValueError("there is more behind the end mark")

    def _one(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        path = _path(info.name)
        meta = _meta(info)
        if info.isdir():
            self._parents(path)
            if path in self._seen:
                raise ValueError("the archive has the name twice")
            # A directory may be described twice, or after what is in it: the last one counts.
            self._placer.directory(path, meta)
            return
        if not path:
            raise ValueError("the root must be a directory")
        if path in self._seen or self._placer.has_directory(path):
            raise ValueError("the archive has the name twice")
        self._parents(path)
        if info.isreg():
            self._file(tar, info, path, meta)
        elif info.issym():
            self._placer.symlink(path, os.fsencode(info.linkname), meta)
        elif info.islnk():
            self._placer.link(path, self._linked(info.linkname))
        elif info.isfifo():
            self._placer.node(path, stat.S_IFIFO, meta)
        elif info.isdev():
            if self._devices == "refuse":
                raise ValueError("device nodes don't belong into a layer")
            return
        else:
            raise ValueError(f"a member of unknown type {info.type!r}")
        self._seen.add(path)

    def _linked(self, text: str) -> bytes:
        first = _path(text)
        if first not in self._seen:
            raise ValueError(f"it is a hard link to {text}, which isn't in the archive before it")
        return first

    def _parents(self, path: bytes) -> None:
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = b"/".join(parts[:depth])
            if parent in self._seen:
                raise ValueError(f"{os.fsdecode(parent)}, in its path, is no directory")
            if not self._placer.has_directory(parent):
                self._budget.entry(0)
                self._placer.directory(parent, _IMPLIED)

    def _file(self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: bytes, meta: Meta) -> None:
        fd = self._placer.new_file(path)
        try:
            # extractfile() can't seek in a stream, so the members' bytes are read directly. Of a
            # sparse file only the data is there, piece after piece, and info.sparse says where it
            # belongs (the annotations take that list for a number).
            mapped = cast("list[tuple[int, int]] | None", info.sparse)
            ranges = [(0, info.size)] if mapped is None else mapped
            reader: Any = tar.fileobj
            reader.seek(info.offset_data)
            if sum(length for _, length in ranges) > tar.offset - info.offset_data:
                raise ValueError("its map of holes is nonsense")
            position = 0
            for start, length in ranges:
                if start < position or length < 0 or start + length > info.size:
                    raise ValueError("its map of holes is nonsense")
                self._copy(reader, fd, start, length)
                position = start + length
            os.ftruncate(fd, info.size)
            self._placer.finish_file(fd, meta)
        finally:
            os.close(fd)

    def _copy(self, reader: IO[bytes], fd: int, offset: int, length: int) -> None:
        while length > 0:
            want = min(length, _STEP)
            self._source.allowance = want + self._limits.header
            data = reader.read(want)
            if not data:
                raise EOFError
            self._budget.written(len(data))
            view = memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                view, offset = view[done:], offset + done
            length -= len(data)


def _path(text: str) -> bytes:
    """A member's name as a relative path; b"" for the root itself. Raises ValueError."""
    path = os.fsencode(text)
    while path.startswith(b"./"):
        path = path[2:].lstrip(b"/")
    path = path.rstrip(b"/") if path.strip(b"/") else path
    if path in (b".", b""):
        return b""
    check_path(path)
    return path


def _meta(info: tarfile.TarInfo) -> Meta:
    uid, gid = info.uid, info.gid
    if not (0 <= uid < 2**32 - 1 and 0 <= gid < 2**32 - 1):
        raise ValueError("its owner is out of range")
    attributes = []
    for key, value in info.pax_headers.items():
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :].encode("utf-8", "surrogateescape")
            if travels(name, overlay=False) and len(name) <= 255 and b"\0" not in name:
                attributes.append((name, value.encode("utf-8", "surrogateescape")))
    attributes.sort()
    check_xattrs(attributes)
    return Meta(info.mode & 0o7777, uid, gid, _mtime(info), tuple(attributes))


def _mtime(info: tarfile.TarInfo) -> int:
    """Nanoseconds: the pax header's text where there is one, since tarfile's float rounds."""
    text = info.pax_headers.get("mtime")
    if text is None:
        return int(info.mtime) * 1_000_000_000
    match = _TIME.match(text)
    if match is None:
        raise ValueError("its time is out of range")
    sign, seconds, fraction = match.groups()
    value = int(seconds) * 1_000_000_000 + int((fraction or "")[:9].ljust(9, "0"))
    return -value if sign else value
