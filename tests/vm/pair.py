"""Two guests on one wire, and what tests do with them: a container of theirs, a client at the near end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.vm.cargo import CHECKOUT
from tests.vm.guest import Guest, GuestError
from tests.vm.installed import Installed
from tests.vm.segment import Segment

ROOTFS = "/root/rootfs"
# Debian 13's `busybox sleep` ends when a dump interrupts it: CRIU lets such system calls return EINTR.
IDLE = f"{ROOTFS} -- ticker"
_LOGS = ["/var/lib/ckpt/logs", "/var/lib/ckpt/containers", "/root/ckpt-test.log", "/var/log"]
# The root file system of most containers here: busybox and the migration tests' ticker.
_MAKE_ROOTFS = f"""
mkdir -p {ROOTFS}/bin {ROOTFS}/tmp {ROOTFS}/etc {ROOTFS}/proc {ROOTFS}/sys {ROOTFS}/dev
cp /usr/bin/busybox {ROOTFS}/bin/
for name in $(busybox --list); do [ $name = busybox ] || ln -sf busybox {ROOTFS}/bin/$name; done
gcc -O2 -static -o {ROOTFS}/bin/ticker {CHECKOUT}/tests/e2e/migrate/ticker.c
"""


class Pair:
    """Guests a and b, files in DIRECTORY, wire NAME. DISKS: what each starts from."""

    def __init__(
        self, name: str, directory: Path, disks: tuple[Installed, Installed], *, init: str
    ) -> None:
        self.segment = Segment(name)
        self.directory = directory
        self.guests = [
            Guest(
                letter,
                ready.image,
                self.segment,
                directory / letter,
                base=ready.disk,
                init=init,
                cargo=ready.cargo,
            )
            for letter, ready in zip("ab", disks, strict=True)
        ]
        self.a, self.b = self.guests

    def up(self) -> None:
        """Both on, and the test's root file system in each. Raises GuestError."""
        try:
            for guest in self.guests:
                guest.start()
            with ThreadPoolExecutor(2) as both:
                list(both.map(make_ready, self.guests))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for guest in self.guests:
            guest.cut_power()
        self.segment.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    def clear(self) -> None:
        """No containers, no checkpoints, for the next test; a guest that is off is switched on."""
        with ThreadPoolExecutor(2) as both:
            list(both.map(_clear, self.guests))

    def complaints(self) -> list[str]:
        return [f"{guest.name}: {line}" for guest in self.guests for line in guest.complaints()]

    def keep_logs(self, target: Path) -> None:
        for guest in self.guests:
            place = target / guest.name
            shutil.rmtree(place, ignore_errors=True)
            with suppress(subprocess.TimeoutExpired, GuestError):
                guest.collect(_LOGS, place)
            for console in guest.directory.glob("console*.log"):
                shutil.copy(console, place)

    # --- ckpt -------------------------------------------------------------------------------------

    @contextmanager
    def client(self, address: str, port: int) -> Iterator[Client]:
        """A client of a ticker, at the near end of the wire."""
        client = Client(self.segment, address, port)
        try:
            yield client
        finally:
            client.kill()


def make_ready(guest: Guest) -> None:
    guest.wait()
    make_rootfs(guest)


def make_rootfs(guest: Guest) -> None:
    guest.run(_MAKE_ROOTFS)


def _clear(guest: Guest) -> None:
    if guest.pid() is None:
        guest.start()
        guest.wait()
    # Each start of Python takes two seconds there.
    guest.run(
        'cd /var/lib/ckpt 2>/dev/null || exit 0; ids=$(ls containers); [ -z "$ids" ] || ckpt rm -f $ids;'
        " rm -rf checkpoints/* migrations/*",
        check=False,
    )


class Client:
    """One TCP connection to a ticker: a line each 20 ms, and the answers' counters without a gap."""

    def __init__(self, segment: Segment, address: str, port: int) -> None:
        script = Path(__file__).with_name("client.py")
        self._process = segment.popen(
            sys.executable, str(script), address, str(port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "connected\n":
            raise AssertionError(f"the client can't connect to {address}:{port}")

    def stop(self) -> dict[str, Any]:
        """End it; returns how many lines were EXCHANGED and the LONGEST pause in seconds. Raises AssertionError."""
        said, _ = self._process.communicate("stop\n", timeout=120)
        assert self._process.returncode == 0, f"the client saw: {said}"
        return dict(json.loads(said))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def ckpt_json(guest: Guest, *words: str) -> Any:
    """What `ckpt WORDS --json` says."""
    return json.loads(guest.text("ckpt", *words, "--json"))


def states(guest: Guest) -> dict[str, str]:
    """Name and state of all containers."""
    return {entry["name"]: entry["state"] for entry in ckpt_json(guest, "ps", "-a")}


def cgroup(guest: Guest, name: str) -> str:
    """The cgroup directory of container NAME."""
    (identity,) = [one["id"] for one in ckpt_json(guest, "ps", "-a") if one["name"] == name]
    return guest.text(f"echo /sys/fs/cgroup/ckpt*/{identity}")
