"""The Debian mirror that this machine uses already, asked about another suite.

Deriving a suite's source from the machine's own, and an apt that knows nothing of this machine, are
scripts/setup-criu's; here they answer which versions an image would consist of. Nobody but apt and
debootstrap talks to the mirror, and both check signatures.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from tests.vm.settings import REPO

SETUP_CRIU = REPO / "scripts/setup-criu"


class Unreachable(Exception):
    """The mirror doesn't serve the suite, or not now."""


@cache
def _script() -> ModuleType:
    loader = SourceFileLoader("ckpt_setup_criu", str(SETUP_CRIU))
    spec = importlib.util.spec_from_loader("ckpt_setup_criu", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def source(suite: str) -> tuple[str, str]:
    """(name, text) of a source list for SUITE. Raises Unreachable."""
    try:
        name, text = _script().own_source(suite)
    except _script().Failed as error:
        raise Unreachable(str(error)) from error
    return str(name), str(text)


def address(suite: str) -> str:
    """The mirror's URI, as debootstrap wants it."""
    found = re.search(r"(?:^URIs:\s*|^deb\s+(?:\[[^\]]*\]\s+)?)(\S+)", source(suite)[1], re.M)
    assert found
    return found[1]


def transport_options() -> str:
    """How this machine's apt fetches (proxies, checks of dates), as lines of apt.conf."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = r'Acquire::(https?::(?!.*[Kk]ey)|Check-)\S* "[^"]+";'
    return "".join(f"{line}\n" for line in dump.splitlines() if re.fullmatch(kept, line))


def versions(suite: str, packages: list[str]) -> dict[str, str]:
    """Name and version of all that installing PACKAGES on nothing would install. Raises Unreachable."""
    with tempfile.TemporaryDirectory(prefix="ckpt-vm-apt-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # apt downloads as its own user
        try:
            apt = _script().PrivateApt(Path(folder), suite)
            apt.get("update")
            planned = apt.get("install", "--simulate", *packages)
        except _script().Failed as error:
            raise Unreachable(f"Debian {suite}: {error}") from error
    return dict(re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", planned, re.M))
