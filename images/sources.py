"""Where the images of a restore come from: what criu_stream.Serve asks, and a directory as answer.

The other source is spool.Spool, which may still be filling while CRIU is being served.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from images.moving import BUFFER, os_fault
from images.parts import CRIU


class Pending:
    """The type of PENDING."""


PENDING: Final = Pending()
"""A source's answer for a name that may still arrive."""


class Reader(Protocol):
    """One image on its way to CRIU."""

    def move(self, pipe: int) -> int | None:
        """Move some bytes into the pipe, which doesn't block: how many; 0 at the end of the image;
        None when more has yet to arrive. Raises BlockingIOError (the pipe is full),
        BrokenPipeError (CRIU has closed it), or a fault when the rest will never arrive."""

    def close(self) -> None: ...


class Source(Protocol):
    """Where a restore's images come from.

    news: a descriptor that becomes readable when something has arrived, or None for a source that
    is whole; took_news() makes it unreadable again.
    """

    @property
    def news(self) -> int | None: ...

    def took_news(self) -> None: ...

    def open(self, name: str) -> Reader | None | Pending: ...


class DirectorySource:
    """Images that lie as files in a directory (a descriptor, which it doesn't own)."""

    news: int | None = None

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def took_news(self) -> None:
        """Nothing ever arrives: the directory is whole."""

    def open(self, name: str) -> Reader | None:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            return _FileReader(os.open(name, flags, dir_fd=self._directory))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise os_fault(error, doing="opening", target=f"{CRIU}/{name}") from error


class _FileReader:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def move(self, pipe: int) -> int | None:
        return os.splice(self._fd, pipe, BUFFER, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)

    def close(self) -> None:
        os.close(self._fd)
