"""Static programs of ours without a C library: small, quick to start, the same in every root file system."""

from __future__ import annotations

from pathlib import Path

from runtime.compiled import compiled

_FLAGS = [
    "-Os",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
    "-s",
]


def program(source: Path, cache: Path) -> Path:
    """What SOURCE becomes, in CACHE. Raises NotFound without a C compiler."""
    return compiled(source, _FLAGS, cache)
