"""Small C programs of ours, compiled once per host and version of their source."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.files import publish
from runtime.programs import run


def compiled(source: Path, flags: Sequence[str], cache: Path) -> Path:
    """The file in CACHE that `cc FLAGS` makes of SOURCE; compiled when it isn't there.

    Raises NotFound without a C compiler, SystemFault when it refuses.
    """
    key = hashlib.sha256(source.read_bytes() + "\0".join(flags).encode()).hexdigest()[:16]
    path = cache / f"{source.stem}-{key}"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as work:
        built = Path(work) / "built"
        run(["cc", *flags, "-o", str(built), str(source)], what="compiling with")
        program = built.read_bytes()
    cache.mkdir(mode=0o711, parents=True, exist_ok=True)
    publish(path, program, 0o755)
    return path
