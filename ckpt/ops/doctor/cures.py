"""What `ckpt doctor --fix` does by itself: harmless things only, each of which can be repeated.

A cure changes nothing that somebody decided on purpose: limits, security settings, the kernel's command line stay,
and the table says what a person may do about them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ckpt
from ckpt.ops.doctor.kernel import BIG_PIPE
from ckpt.ops.doctor.row import Row, reason
from ckpt.ops.host import Host
from runtime.criu import binary
from runtime.errors import NotFound, RuntimeFault
from runtime.programs import run

_INSTALL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Cured:
    """What became of one repair: DID says what was done, or why it couldn't be."""

    repair: str
    did: str
    worked: bool

    def to_dict(self) -> dict[str, Any]:
        return {"repair": self.repair, "did": self.did, "worked": self.worked}


def cure(host: Host, rows: Iterable[Row]) -> list[Cured]:
    """Try the repair of each row that names one."""
    done = []
    for repair in dict.fromkeys(row.repair for row in rows if row.repair in _CURES):
        try:
            done.append(Cured(repair, _CURES[repair](host), True))
        except (OSError, RuntimeFault, subprocess.SubprocessError) as error:
            done.append(Cured(repair, reason(error), False))
    # What was found out about CRIU before isn't true any more.
    binary.find.cache_clear()
    return done


def _pipe_size(host: Host) -> str:
    Path("/proc/sys/fs/pipe-max-size").write_text(str(BIG_PIPE))
    return f"set fs.pipe-max-size to {BIG_PIPE} until the next reboot (to keep it: /etc/sysctl.d)"


def _directories(host: Host) -> str:
    host.ready()
    return f"made {host.paths.root} and {host.paths.run}"


def _criu(host: Host) -> str:
    script = _set_up_script()
    if script is not None:
        run([sys.executable, str(script)], what="installing CRIU with", timeout=_INSTALL_SECONDS)
        return "installed CRIU with scripts/setup-criu"
    return _from_package("criu", "python3-pycriu")


def _pycriu(host: Host) -> str:
    script = _set_up_script()
    if script is not None and sys.prefix != sys.base_prefix:
        run(
            [sys.executable, str(script), "--link-pycriu", sys.prefix],
            what="linking pycriu with",
            timeout=_INSTALL_SECONDS,
        )
        return f"linked pycriu into {sys.prefix}"
    return _from_package("python3-pycriu")


def _set_up_script() -> Path | None:
    """scripts/setup-criu of the checkout that ckpt runs from."""
    script = Path(ckpt.__file__).resolve().parent.parent / "scripts" / "setup-criu"
    return script if script.is_file() else None


def _from_package(*names: str) -> str:
    apt = shutil.which("apt-get")
    if apt is None:
        raise NotFound(doing="installing", target=names[0], why="this host has no apt-get")
    argv = [apt, "install", "-q", "-y", "--no-install-recommends", *names]
    run(argv, what="installing with", timeout=_INSTALL_SECONDS)
    return f"installed {', '.join(names)}"


_CURES: dict[str, Callable[[Host], str]] = {
    "pipe-size": _pipe_size,
    "directories": _directories,
    "criu": _criu,
    "pycriu": _pycriu,
}
