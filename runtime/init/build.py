"""Compiling the static init, once per host and version of its source.

It travels with the container, as a layer like any other, so that a destination needs no compiler and has the very same
file: CRIU compares the size of every mapped file, and a different build of the same source would differ.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from runtime.files import publish
from runtime.programs import run

SOURCE = Path(__file__).with_name("init.c")
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


def init_program(cache: Path) -> bytes:
    """The program's bytes; compiled into CACHE when it isn't there. Raises NotFound without a C compiler."""
    source = SOURCE.read_bytes()
    path = cache / f"init-{hashlib.sha256(source).hexdigest()[:16]}"
    if path.exists():
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as work:
        built = Path(work) / "init"
        run(["cc", *_FLAGS, "-o", str(built), str(SOURCE)], what="compiling the init with")
        program = built.read_bytes()
    cache.mkdir(mode=0o711, parents=True, exist_ok=True)
    publish(path, program, 0o755)
    return program
