"""runc and podman at work: a container with the workload, checkpointed, copied through ssh, restored."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.apart import Apart, PeerFault
from benchmarks.feeder import SPARE, meminfo
from benchmarks.peers import setup
from benchmarks.workload import Ticks, WrongPages, command
from tests.lab import Host, Lab

TAKES = 4.2
"""Times the memory of a container that a peer needs at most: the container, images, and copies of both."""
_CIPHER = ("-c", "aes128-gcm@openssh.com")


class Runc:
    """runc checkpoint, tar through ssh, runc restore."""

    _runc = ("runc", "--log", "/work/runc.log")

    def __init__(self, apart: Apart, here: Host, there: Host, work: Path) -> None:
        self._apart = apart
        self._here, self._there = here, there
        self._work = work
        self._bundle = work / "bundle"

    def clear(self) -> None:
        for name in ("s1", "s2"):
            self._apart.run(self._here, *self._runc, "delete", "--force", name, check=False)
        for name in ("h1", "h2"):
            shutil.rmtree(self._work / name, ignore_errors=True)
            (self._work / name).mkdir()

    def start(self, argv: Sequence[str]) -> None:
        self._bundle.mkdir(exist_ok=True)
        (self._bundle / "config.json").unlink(missing_ok=True)
        self._apart.run(self._here, *self._runc, "spec", "--bundle", "/work/bundle")
        config = json.loads((self._bundle / "config.json").read_text())
        (self._bundle / "config.json").write_text(json.dumps(self._changed(config, argv)))
        words = ["--detach", "--bundle", "/work/bundle", "s1"]
        self._apart.run(self._here, *self._runc, "run", *words, quiet=True)

    def _changed(self, config: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
        config["root"] = {"path": "/work/root", "readonly": False}
        config["process"] |= {"terminal": False, "args": list(argv)}
        config["process"].pop("rlimits", None)  # may need CAP_SYS_RESOURCE
        mounts = [one for one in config["mounts"] if one["type"] != "cgroup"]
        ticks = {"destination": "/ticks", "type": "bind", "source": "/work/ticks"}
        config["mounts"] = [*mounts, {**ticks, "options": ["rbind", "rw"]}]
        return config

    def move(self) -> None:
        images = ["--image-path", "/work/h1/img", "--work-path", "/work/h1/log"]
        self._apart.run(self._here, *self._runc, "checkpoint", *images, "s1")
        take = f"tar -C {self._work / 'h2'} -xf -"
        _pour(self._here, self._there, ["tar", "-C", self._work / "h1", "-cf", "-", "img"], take)
        images = ["--image-path", "/work/h2/img", "--work-path", "/work/h2/log"]
        words = ["--detach", "--bundle", "/work/bundle", *images, "s2"]
        try:
            self._apart.run(self._there, *self._runc, "restore", *words, quiet=True)
        except PeerFault as fault:
            raise PeerFault(f"{fault}; {self._said()}") from fault

    def _said(self) -> str:
        """Its last words, and CRIU's complaints."""
        log, criu = self._work / "runc.log", self._work / "h2/log/restore.log"
        own = log.read_text(errors="replace")[-500:] if log.exists() else ""
        lines = criu.read_text(errors="replace").splitlines() if criu.exists() else []
        return own + "\n".join([line for line in lines if "Error" in line][-5:])

    def signal(self, name: str) -> None:
        self._apart.run(self._there, *self._runc, "kill", "s2", name)


class Podman:
    """podman container checkpoint --export, the archive through ssh, podman container restore --import."""

    _podman = (
        *("podman", "--root", "/work/storage", "--runroot", "/run/storage"),
        *("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"),
    )
    _image = "localhost/load:1"

    def __init__(self, apart: Apart, here: Host, there: Host, work: Path) -> None:
        self._apart = apart
        self._here, self._there = here, there
        self._work = work

    def clear(self) -> None:
        remove = ["rm", "--force", "--time", "0", "p1", "p2"]
        self._apart.run(self._here, *self._podman, *remove, check=False)
        for name in ("h1", "h2"):
            shutil.rmtree(self._work / name, ignore_errors=True)
            (self._work / name).mkdir()

    def start(self, argv: Sequence[str]) -> None:
        exists = ["image", "exists", self._image]
        known = "yes" in self._apart.run(
            self._here, "sh", "-c", '"$@" && echo yes', "sh", *self._podman, *exists, check=False
        )
        if not known:
            script = 'tar -C /work/root -c . | "$@"'
            words = [*self._podman, "import", "-", self._image]
            self._apart.run(self._here, "sh", "-c", script, "sh", *words)
        self._apart.run(
            *(self._here, *self._podman, "run", "--detach", "--name", "p1", "--network", "none"),
            *("--log-driver", "none", "--volume", "/work/ticks:/ticks", self._image, *argv),
        )

    def move(self) -> None:
        checkpoint = ["container", "checkpoint", "--compress", "none", "--export", "/work/h1/x.tar"]
        self._apart.run(self._here, *self._podman, *checkpoint, "p1")
        archive = self._work / "h1/x.tar"
        with archive.open("rb") as file:
            # Away while it is open: it needn't take memory beside its copy.
            archive.unlink()
            _pour(self._here, self._there, ["cat"], f"cat > {self._work / 'h2/x.tar'}", file)
        restore = ["container", "restore", "--import", "/work/h2/x.tar", "--name", "p2"]
        self._apart.run(self._there, *self._podman, *restore)

    def signal(self, name: str) -> None:
        self._apart.run(self._there, *self._podman, "kill", "--signal", name, "p2")


KINDS: dict[str, type[Runc] | type[Podman]] = {"runc": Runc, "podman": Podman}


def _pour(here: Host, there: Host, give: Sequence[object], take: str, source: Any = None) -> None:
    """GIVE's output to TAKE on the other host, through ssh."""
    giver = here.popen([*map(str, give)], stdin=source, stdout=subprocess.PIPE)
    config = str(here.lab.login.config)
    taker = here.popen(["ssh", "-F", config, *_CIPHER, there.name, take], stdin=giver.stdout)
    assert giver.stdout is not None
    giver.stdout.close()
    if taker.wait() or giver.wait():
        raise PeerFault(f"copying with {take!r} failed")


class Peers:
    """All peers, on the hosts of LAB. SCRATCH: a directory in memory with the workload's root/ and ticks/."""

    def __init__(self, apart: Apart, lab: Lab, scratch: Path) -> None:
        self._ticks = scratch / "ticks/t"
        self._here = lab["a"]
        self.kinds: dict[str, Runc | Podman] = {
            name: make(apart, lab["a"], lab["b"], scratch) for name, make in KINDS.items()
        }

    def gap_ms(self, name: str, mib: int, per_ms: int, *, verify: bool = False) -> float:
        """One move of one container: the largest gap in its own ticks. Raises PeerFault, WrongPages."""
        peer = self.kinds[name]
        self._ticks.unlink(missing_ok=True)
        ticks = Ticks(self._ticks)
        try:
            peer.clear()
            peer.start(command(mib, per_ms))
            ticks.wait_ready()
            ticks.wait_on()
            since = time.time_ns()
            peer.move()
            ticks.wait_on()
            gap = ticks.gap_ms(since)
            if verify:
                peer.signal("USR1")
                if bad := ticks.verdict():
                    raise WrongPages(f"{bad} pages are wrong after {name}")
            return gap
        finally:
            peer.clear()


def fits(mib: int) -> bool:
    return mib * TAKES + (SPARE >> 20) / 2 <= meminfo("MemAvailable") >> 20


@contextlib.contextmanager
def in_memory(root: Path) -> Iterator[Path]:
    """A directory in memory, gone at the end of the block, with a copy of ROOT as root/."""
    place = Path(f"/tmp/ckpt-peers-{os.getpid()}")
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=90%,mode=0755", "ckpt-peers", place], check=True
        )
        try:
            shutil.copytree(root, place / "root", symlinks=True)
            (place / "ticks").mkdir(mode=0o777)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
    finally:
        place.rmdir()


@contextlib.contextmanager
def opened(lab: Lab, root: Path) -> Iterator[Peers]:
    """ROOT: the workload's root file system. Raises PeerFault if they can't be set up."""
    base = setup()
    with in_memory(root) as scratch, Apart(base, scratch) as apart:
        yield Peers(apart, lab, scratch)
