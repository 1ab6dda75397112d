"""Named volumes: directories of this host that containers share and that outlive them.

A volume lies in `<root>/volumes/NAME` with the owners that the containers see (root is 0): it is mapped into each
container's own id range when it is mounted, so that several containers, and the host's tools, agree on whose a file is.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

from runtime.container.record import check_name
from runtime.errors import BadInput
from runtime.paths import HostPaths


def with_source(text: str, paths: HostPaths) -> str:
    """`NAME:DST[:ro]` with the volume's directory as its source; what begins with a path stays as it is."""
    source, colon, rest = text.partition(":")
    if not colon or source.startswith("/"):
        return text
    if "/" in source:
        raise BadInput(
            doing="reading --volume",
            target=text,
            why="its source is neither a volume's name nor an absolute path",
            hint='"$PWD/data:/data"',
        )
    return f"{paths.volumes / check_name(source, 'volume name')}:{rest}"


def make_missing(paths: HostPaths, spec: dict[str, Any], layer: Path) -> None:
    """Make the named volumes that a spec mounts and that are not there yet.

    A new one gets owner and mode of the directory of the root file system (LAYER) over which it is mounted, so that a
    service that isn't root can write to it.
    """
    for mount in spec.get("mounts") or ():
        source = Path(mount.get("source") or "")
        if source.parent != paths.volumes or source.exists():
            continue
        paths.volumes.mkdir(mode=0o711, exist_ok=True)
        fresh = source.with_name(f".{source.name}.new")
        fresh.mkdir(mode=0o755, exist_ok=True)
        below = layer / mount["destination"].lstrip("/")
        if below.is_dir() and not below.is_symlink():
            held = below.stat()
            fresh.chmod(stat.S_IMODE(held.st_mode))
            shutil.chown(fresh, held.st_uid, held.st_gid)
        fresh.rename(source)
