"""Small C programs and libraries of ours without a C library, compiled once per host and version of their source.

Programs are static: quick to start, and the same in every root file system.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.files import publish
from runtime.programs import run

_FLAGS = [
    "-Os",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-Wl,--build-id=none",
    "-s",
]
_PROGRAM = [
    "-static",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-no-pie",
    "-Wl,-z,noseparate-code",
]
_LIBRARY = ["-shared", "-fPIC", "-fvisibility=hidden"]


def program(source: Path, cache: Path) -> Path:
    """What SOURCE becomes, in CACHE. Raises NotFound without a C compiler, SystemFault when it refuses."""
    return _compiled(source, [*_FLAGS, *_PROGRAM], cache)


def library(source: Path, cache: Path) -> Path:
    """The same, to be loaded into a program; it may use the program's errno."""
    return _compiled(source, [*_FLAGS, *_LIBRARY], cache)


def _text(source: Path) -> bytes:
    """SOURCE and what it includes of ours."""
    text = source.read_bytes()
    for name in re.findall(rb'^#include "(.+)"', text, re.MULTILINE):
        text += _text(source.parent / name.decode())
    return text


def _compiled(source: Path, flags: Sequence[str], cache: Path) -> Path:
    text = _text(source)
    key = hashlib.sha256(text + "\0".join(flags).encode()).hexdigest()[:16]
    path = cache / f"{source.stem}-{key}"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as work:
        built = Path(work) / "built"
        run(["cc", *flags, "-o", str(built), str(source)], what="compiling with")
        made = built.read_bytes()
    cache.mkdir(mode=0o711, parents=True, exist_ok=True)
    publish(path, made, 0o755)
    return path
