"""Where things lie on a host. Persistent things under one root, volatile ones under another."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROOT = "/var/lib/ckpt"
DEFAULT_RUN = "/run/ckpt"


@dataclass(frozen=True, slots=True)
class ContainerPaths:
    """The files of one container: `home` survives a reboot, `run` does not."""

    home: Path
    run: Path

    @property
    def record(self) -> Path:
        return self.home / "record.json"

    @property
    def status(self) -> Path:
        return self.home / "status.json"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def rw(self) -> Path:
        """Holds `upper` and `work` of overlayfs, which must share a mount."""
        return self.home / "rw"

    @property
    def upper(self) -> Path:
        return self.rw / "upper"

    @property
    def logs(self) -> Path:
        """Everything in it moves with the container."""
        return self.home / "logs"

    @property
    def log(self) -> Path:
        return self.logs / "log"

    @property
    def jobs(self) -> Path:
        return self.logs / "jobs"

    @property
    def etc(self) -> Path:
        """resolv.conf, hosts and hostname, as the container sees them."""
        return self.home / "etc"

    @property
    def plan(self) -> Path:
        return self.run / "plan.json"


@dataclass(frozen=True, slots=True)
class HostPaths:
    """A host's two roots. Several hosts fit on one machine when their roots differ."""

    root: Path
    run: Path

    @classmethod
    def of(cls, root: str | None = None) -> HostPaths:
        """ROOT, else $CKPT_ROOT, else the default. Volatile state moves along with a root of one's own."""
        chosen = Path(root or os.environ.get("CKPT_ROOT") or DEFAULT_ROOT).absolute()
        run = Path(DEFAULT_RUN) if str(chosen) == DEFAULT_ROOT else chosen / "run"
        return cls(chosen, run)

    @property
    def containers(self) -> Path:
        return self.root / "containers"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def volumes(self) -> Path:
        """Named volumes, with the owners that containers see."""
        return self.root / "volumes"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def network(self) -> Path:
        return self.root / "network"

    @property
    def programs(self) -> Path:
        """Small C programs of ours, compiled here."""
        return self.root / "programs"

    @property
    def journals(self) -> Path:
        return self.root / "migrations"

    @property
    def host_lock(self) -> Path:
        return self.root / "lock"

    @property
    def tag(self) -> str:
        """ "" for the default root; else a short name of the root, for what is global on a machine (cgroups)."""
        if str(self.root) == DEFAULT_ROOT:
            return ""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    def container(self, identity: str) -> ContainerPaths:
        return ContainerPaths(self.containers / identity, self.run / "c" / identity)

    def make(self) -> None:
        """Create the directories; private to root."""
        for path in (self.root, self.run, self.containers, self.run / "c"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The monitor's staging and containers' users walk through these; they may not list them.
        for path in (self.root, self.run, self.run / "c", self.containers):
            path.chmod(0o711)
