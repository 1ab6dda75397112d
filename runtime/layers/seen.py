"""Remembers which directory or archive gave which layer, so that it isn't read again.

The key is where it was; what must be equal is a fingerprint of every entry's stat. As in
runtime.tree.index, times are coarse: what was stamped within a tick of the look may have been
written again unseen, so it isn't remembered. That is a cache: losing it costs time only.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import time

from blake3 import blake3

from runtime.tree.index import Index

_TICK_NS = 20_000_000
_ROW = struct.Struct("<IIIQqqQQQI")


def fingerprint_of_tree(index: Index, options: str) -> str:
    """A digest of all stats of a walk and of the options that matter."""
    digest = blake3(f"tree 1 {options}".encode())
    for path, entry in index.entries.items():
        digest.update(
            _ROW.pack(
                entry.mode,
                entry.uid,
                entry.gid,
                entry.size,
                entry.mtime_ns,
                entry.ctime_ns,
                entry.ino,
                entry.dev,
                entry.rdev,
                len(path),
            )
            + path
        )
    for path in sorted(index.closed):
        digest.update(b"closed" + len(path).to_bytes(4, "little") + path)
    return str(digest.hexdigest())


def fingerprint_of_file(st: os.stat_result, options: str) -> str:
    """The same for an archive."""
    row = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
    return str(blake3(f"file 1 {options} {row}".encode()).hexdigest())


class Seen:
    """A directory of small files, one per place imported from."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def digest(self, place: str, mark: str) -> str | None:
        """The layer that `place` gave when it had this fingerprint."""
        try:
            with open(self._file(place), encoding="utf-8") as file:
                fields = json.load(file)
            if fields["mark"] == mark and isinstance(fields["digest"], str):
                return str(fields["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def remember(self, place: str, mark: str, digest: str, youngest_ns: int) -> None:
        """Note it, unless something in `place` is too young for its time stamp to mean much."""
        if youngest_ns > time.time_ns() - _TICK_NS:
            return
        # A cache: whatever goes wrong here is no reason to fail an import.
        with contextlib.suppress(OSError):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd, draft = tempfile.mkstemp(dir=self._directory)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    json.dump({"place": place, "mark": mark, "digest": digest}, file)
                os.rename(draft, self._file(place))
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise

    def _file(self, place: str) -> str:
        return os.path.join(self._directory, str(blake3(os.fsencode(place)).hexdigest()) + ".json")
