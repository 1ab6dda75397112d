"""Compiled seccomp filters, kept on disk: compiling one takes a tenth of a second of libseccomp's time.

A file is named by the digest of all that its content depends on, and holds the digest of its program; one that was cut
short by a crash is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.security import seccomp

KEPT = 50


def program(profile: Mapping[str, Any], directory: Path) -> tuple[bytes, int]:
    """The filter program of `linux.seccomp`, and the flags to load it with. Raises as compile_profile does."""
    path = directory / _key(profile)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        code = bytes.fromhex(kept["program"])
        if hashlib.sha256(code).hexdigest() == kept["digest"]:
            return code, int(kept["flags"])
    made = seccomp.compile_profile(profile)
    with contextlib.suppress(OSError):  # without it, the next time takes as long
        _keep(path, made)
    return made.program, made.flags


def _key(profile: Mapping[str, Any]) -> str:
    """What is compiled, by which code, for which kernel and machine."""
    digest = hashlib.sha256(json.dumps(profile, sort_keys=True).encode())
    digest.update(Path(seccomp.__file__).read_bytes())
    digest.update(" ".join(os.uname()[2:]).encode())
    return digest.hexdigest()


def _keep(path: Path, made: seccomp.Filter) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    value = {
        "program": made.program.hex(),
        "flags": made.flags,
        "digest": hashlib.sha256(made.program).hexdigest(),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)
    for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
