"""Which CRIU is used, and what it can do."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runtime.errors import NotFound, Unsupported
from runtime.freestanding import library
from runtime.programs import run

PRIVATE = "/usr/local/lib/ckpt/criu/criu"
LEAST = (4, 1)


@dataclass(frozen=True, slots=True)
class Criu:
    path: str
    version: tuple[int, ...]

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))


def netfilter(programs: Path) -> Path:
    """What is preloaded into CRIU so that netfilter doesn't hold it up. PROGRAMS: where what we compile lies."""
    return library(Path(__file__).with_name("netfilter.c"), programs)


def candidates() -> list[str]:
    """$CKPT_CRIU, the private prefix, then the PATH."""
    given = os.environ.get("CKPT_CRIU")
    if given:
        return [given]
    found = shutil.which("criu", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    prefix = os.environ.get("CKPT_CRIU_PREFIX")
    private = str(Path(prefix) / "criu") if prefix else PRIVATE
    return [path for path in (private, found) if path and Path(path).exists()]


@cache
def find() -> Criu:
    """The first CRIU that is new enough. Raises NotFound, or Unsupported when all are too old."""
    paths = candidates()
    for path in paths:
        version = version_of(path)
        if version >= LEAST:
            return Criu(path, version)
    if not paths:
        raise NotFound(
            doing="looking for", target="criu", why="it is not installed", hint="ckpt doctor --fix"
        )
    raise Unsupported(
        doing="using",
        target=paths[-1],
        why=f"CRIU {'.'.join(map(str, version_of(paths[-1])))} is older than 4.1",
        hint="ckpt doctor says how to get a newer one",
    )


def version_of(path: str) -> tuple[int, ...]:
    out = run([path, "--version"], what="asking the version of").stdout.decode()
    match = re.search(r"Version:\s*([0-9][0-9.]*)", out)
    return tuple(int(part) for part in match.group(1).split(".") if part) if match else (0,)
