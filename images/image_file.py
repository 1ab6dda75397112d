"""Reading and writing CRIU's image files with pycriu, and making sure of what it doesn't check.

pycriu trusts its input: a negative size reads to the end of the file, a cut message is parsed as
far as it goes, and anything else surfaces as whichever exception came first. Here every read has to
give what was asked for, and whatever fails becomes Corrupt with the name of the file.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from images.errors import Corrupt, Truncated
from images.moving import os_fault

Entry = dict[str, Any]
MAX_SIZE = 256 << 20
"""Bytes of an image that is read into memory; page data, which may be larger, never is."""


class _ExactFile:
    """A file as pycriu wants it, with short and backward reads turned into errors."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int | None = None) -> bytes:
        if count is None:
            return self._file.read()
        if count < 0:
            raise ValueError(f"a size of {count}")
        data = self._file.read(count)
        # The end is in order only where an entry could begin, and those begin with 4 bytes.
        if len(data) < count and (data or count != 4):
            raise EOFError
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            if offset < 0 or len(self._file.read(offset)) < offset:
                raise EOFError
            return self._file.tell()
        return self._file.seek(offset, whence)


def rehearse() -> None:
    """Import pycriu, which takes 30 to 100 ms: before the frozen window, if it will be needed there."""
    from pycriu import images as pycriu_images

    assert pycriu_images


def load_image(directory: str, name: str, magic: str) -> list[Entry]:
    """The entries of an image file, payloads left out. Raises Corrupt naming the file."""
    path = os.path.join(directory, name)
    try:
        with open(path, "rb", opener=_open_plain) as file:
            if os.fstat(file.fileno()).st_size > MAX_SIZE:
                raise _corrupt(name, "it is too large for what it should be")
            return _load(file, name, magic, no_payload=True)
    except FileNotFoundError as error:
        raise _corrupt(name, "it is missing") from error
    except OSError as error:
        raise os_fault(error, doing="reading", target=name) from error


def parse_image(data: bytes, name: str, magic: str) -> list[Entry]:
    """The same, payloads included, for an image in memory."""
    return _load(io.BytesIO(data), name, magic, no_payload=False)


def build_image(magic: str, entries: list[Entry]) -> bytes:
    """The reverse of parse_image."""
    from pycriu import images as pycriu_images

    data: bytes = pycriu_images.dumps({"magic": magic, "entries": entries})
    return data


def _load(file: BinaryIO, name: str, magic: str, *, no_payload: bool) -> list[Entry]:
    # Imported late: it loads some 70 modules of protobuf, and a monitor never needs it.
    from pycriu import images as pycriu_images

    try:
        image = pycriu_images.load(_ExactFile(file), no_payload=no_payload)
    except OSError:
        raise
    except (EOFError, IndexError) as error:
        raise Truncated(doing="reading", target=name, why="its end is missing") from error
    except Exception as error:
        # pycriu promises no particular exceptions; protobuf, struct and its own occur.
        raise _corrupt(name, f"unreadable ({type(error).__name__})") from error
    if image["magic"] != magic:
        raise _corrupt(name, f"it is of kind {image['magic']}, not {magic}")
    entries: list[Entry] = image["entries"]
    return entries


def _corrupt(name: str, why: str) -> Corrupt:
    return Corrupt(doing="reading", target=name, why=why)


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
