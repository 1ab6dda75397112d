"""A file that is written at the end, and whose place is tried at the beginning."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from runtime.errors import from_os_error


class PageFile:
    """PATH, made when `write` is called, whole or not at all. Use as a context manager. Raises RuntimeFault at once
    when there is no writing there: a migration that can't be told of shall not begin."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            if self.path.is_dir():
                raise IsADirectoryError(21, os.strerror(21))
            fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        except OSError as error:
            raise from_os_error(error, doing="writing the report", target=path) from error
        os.fchmod(fd, 0o644)
        os.close(fd)
        self._draft = Path(name)

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._draft.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Raises RuntimeFault."""
        try:
            self._draft.write_text(text, encoding="utf-8")
            self._draft.replace(self.path)
        except OSError as error:
            raise from_os_error(error, doing="writing the report", target=str(self.path)) from error
