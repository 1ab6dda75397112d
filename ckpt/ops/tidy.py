"""Directories of agents, and what agents that were killed leave: nobody else knows of it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from ckpt.ops.host import Host

_FOLDER = re.compile(r"a(\d+)-\w+")


def agent_folder(host: Host) -> Path:
    """A directory for this process's sockets, whose name tells whose it is. Short: it holds Unix sockets."""
    return Path(tempfile.mkdtemp(prefix=f"a{os.getpid()}-", dir=host.paths.run))


def after_agents(host: Host) -> list[str]:
    """Remove what agents left that are gone: their directories, and half-received layers; says what."""
    done = []
    for path in host.paths.run.iterdir() if host.paths.run.is_dir() else ():
        found = _FOLDER.fullmatch(path.name)
        if found and not Path("/proc", found[1]).exists():
            shutil.rmtree(path, ignore_errors=True)
            done.append(f"directory of agent {found[1]}")
    swept = host.layers.sweep()
    if swept:
        done.append(f"{swept} half-made layers")
    return done
