"""How much an archive or a directory may hold before it is taken for an attack."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for one import; sizes in bytes."""

    entries: int = 4_000_000
    data: int = 1 << 40  # content written, holes not counted
    file: int = 1 << 43  # the size of one file, holes counted
    header: int = 4 << 20  # what describes one archive member: long names, attributes

    def within(self, directory: str) -> Limits:
        """The same, but leaving a twentieth of the file system's free space alone, so that a
        decompression bomb ends before the disk is full."""
        space = os.statvfs(directory)
        free = space.f_bavail * space.f_frsize
        return Limits(self.entries, min(self.data, free * 19 // 20), self.file, self.header)


class Budget:
    """Counts an import against its limits. Raises ValueError, with the reason, beyond them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.entries = 0
        self.data = 0

    def entry(self, size: int) -> None:
        """One more file of so many bytes (holes counted)."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ValueError(f"there are more than {self._limits.entries} files")
        if not 0 <= size <= self._limits.file:
            raise ValueError(f"its size, {size}, is beyond {self._limits.file} bytes")

    def written(self, count: int) -> None:
        """So many more bytes of content."""
        self.data += count
        if self.data > self._limits.data:
            raise ValueError(
                f"the content exceeds {self._limits.data} bytes, which is the limit or what the "
                "disk has room for"
            )
