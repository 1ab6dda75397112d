"""Running a program with libraries of ours loaded before its own (LD_PRELOAD, ld.so(8))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def command(
    argv: Sequence[str], libraries: Sequence[Path], variables: Mapping[str, str]
) -> list[str]:
    """The command line that runs ARGV with LIBRARIES loaded; the process is that of ARGV itself."""
    preload = f"LD_PRELOAD={':'.join(map(str, libraries))}"
    return ["env", preload, *(f"{name}={value}" for name, value in variables.items()), *argv]
