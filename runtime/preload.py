"""Small libraries of ours that are loaded into CRIU before its own (LD_PRELOAD, ld.so(8))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.compiled import compiled

_FLAGS = [
    "-Os",
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fvisibility=hidden",
    "-Wl,--build-id=none",
    "-s",
]


def library(source: Path, cache: Path) -> Path:
    """What SOURCE becomes, in CACHE. It needs no C library but for errno. Raises NotFound without a compiler."""
    return compiled(source, _FLAGS, cache)


def command(
    argv: Sequence[str], libraries: Sequence[Path], variables: Mapping[str, str]
) -> list[str]:
    """The command line that runs ARGV with LIBRARIES loaded; the process is that of ARGV itself."""
    preload = f"LD_PRELOAD={':'.join(map(str, libraries))}"
    return ["env", preload, *(f"{name}={value}" for name, value in variables.items()), *argv]
