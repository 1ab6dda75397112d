"""A disk on which ckpt was installed as the README says, and a checkout with the tests' environment beside it.

One guest installs, is switched off, and its disk is what all guests of a run start from: installing takes
minutes under emulation. The disk is named by a digest of everything that went into it, so it's made again
whenever the checkout, the wheels or the image changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.cargo import CHECKOUT, PIP, cargo
from tests.vm.guest import Guest
from tests.vm.image import CannotBuild, Image, image
from tests.vm.segment import Segment
from tests.vm.settings import CACHE, REPO

log = logging.getLogger(__name__)

_KEPT = 3
_DOCUMENTED = ("docs/install.md", "With make")
READY = "CKPT_VM_READY"
"""Names the folders of what guests start from, separated by colons, for a process that is to use just these."""
HOME = "/root/ckpt"
"""Where the checkout is in a guest."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An image, the disk over it, and the second disk that was there."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def image(self) -> Image:
        return Image(Path(self._made_of["image"]))

    @property
    def cargo(self) -> Path:
        return Path(self._made_of["cargo"])

    @property
    def _made_of(self) -> dict[str, str]:
        return dict(json.loads((self.folder / "made-of.json").read_text()))


def installed(suite: str, run_name: str) -> Installed:
    """ckpt on SUITE, installed if need be. RUN_NAME names the wire meanwhile. Raises CannotBuild, GuestError."""
    base = image(suite)
    freight = cargo(base.info["python"])
    key = hashlib.sha256(f"{base.info['key']} {freight.name}".encode()).hexdigest()[:12]
    folder = CACHE / f"installed-{suite}-{key}"
    with (CACHE / f".installed-{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made-of.json").exists():
            _forget_old(suite)
            _install(base, freight, folder, Segment(f"{run_name}-i"))
    os.utime(folder)
    return Installed(folder)


def ready(suite: str, run_name: str) -> Installed:
    """What READY names for SUITE, however old, else what `installed` makes."""
    for folder in filter(None, os.environ.get(READY, "").split(":")):
        if (made := Installed(Path(folder))).image.info["suite"] == suite:
            return made
    return installed(suite, run_name)


def commands() -> list[str]:
    """The way that the documentation recommends, less what a fresh guest has no use for: sudo, and the clone,
    since the checkout is there already."""
    document, heading = _DOCUMENTED
    text = (REPO / document).read_text()
    section = re.search(rf"^#+ {heading}[^\n]*\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    block = section and re.search(
        r"^```\w*\n(.*?)^```|((?:^ {4}[^\n]*\n)+)", section[1], re.M | re.S
    )
    if not block:
        raise CannotBuild(f"{document} has no section {heading!r} with commands in it")
    lines = [line.split(" #")[0].strip() for line in (block[1] or block[2]).splitlines()]
    lines = [line.removeprefix("sudo ") for line in lines if line]
    return [line for line in lines if not line.startswith(("git clone", "cd "))]


def _install(base: Image, freight: Path, folder: Path, segment: Segment) -> None:
    log.info("installing ckpt on Debian %s", base.info["suite"])
    with tempfile.TemporaryDirectory(prefix=f".installing-{os.getpid()}-", dir=CACHE) as work:
        guest = Guest("a", base, segment, Path(work), cargo=freight)
        began = time.monotonic()
        try:
            guest.start()
            guest.wait()
            log.info("up after %.0f s", time.monotonic() - began)
            guest.run(f"cp -r {CHECKOUT} {HOME}")
            environment = " ".join(f"{k}={shlex.quote(v)}" for k, v in PIP.items())
            for line in commands():
                guest.run(f"cd {HOME} && export {environment} && {line}", timeout=1200)
                log.info("%s: done after %.0f s", line, time.monotonic() - began)
            guest.run(
                # For tests alone: compiled as they are imported.
                f"cd {HOME} && env {environment} PIP_NO_COMPILE=1 scripts/setup-venv .venv --editable test",
                timeout=1200,
            )
            guest.shut_down()
        except subprocess.CalledProcessError as error:
            notes = "\n".join(error.__notes__)
            raise CannotBuild(
                f"installing ckpt on {base.info['suite']}: {error}\n{notes}"
            ) from error
        finally:
            guest.cut_power()
            segment.down()
        folder.mkdir(exist_ok=True)
        guest.disk.rename(folder / "disk.qcow2")
        made_of = {"image": str(base.folder), "cargo": str(freight)}
        (folder / "made-of.json").write_text(json.dumps(made_of))
    log.info("installed in %.0f s", time.monotonic() - began)


def _forget_old(suite: str) -> None:
    made = sorted(CACHE.glob(f"installed-{suite}-*"), key=lambda path: path.stat().st_mtime)
    for old in made[: -_KEPT + 1]:
        shutil.rmtree(old)
