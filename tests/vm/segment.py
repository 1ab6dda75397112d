"""The wire: a bridge in a network namespace of its own. Guests reach each other and its near end, nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.vm.settings import SUBNET

BRIDGE = "br0"


class Segment:
    """Guests' wire NAME; programs started through it see its near end, SUBNET.1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace = Path("/run/netns") / name

    def up(self) -> None:
        if self.namespace.exists():
            return
        _ip("netns", "add", self.name)
        self._ip("link", "set", "lo", "up")
        self._ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        self._ip("address", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        self._ip("link", "set", BRIDGE, "up")

    def tap(self, guest: str) -> str:
        """The tap device of GUEST, made if it's missing."""
        name = f"tap-{guest}"
        if subprocess.run(self.argv("ip", "link", "show", name), capture_output=True).returncode:
            subprocess.run(self.argv("ip", "tuntap", "add", name, "mode", "tap"), check=True)
            self._ip("link", "set", name, "master", BRIDGE, "up")
        return name

    def plug(self, guest: str, *, plugged: bool) -> None:
        """Put GUEST's cable in, or pull it: frames are lost in both directions."""
        self._ip("link", "set", self.tap(guest), "up" if plugged else "down")

    def down(self) -> None:
        if self.namespace.exists():
            _ip("netns", "delete", self.name)

    def argv(self, *words: str) -> list[str]:
        """The command line that starts WORDS at the near end."""
        return ["nsenter", f"--net={self.namespace}", "--", *words]

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(self.argv(*words), **{"text": True, **options})

    def _ip(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
