"""What becomes of a migration between two hosts that differ: a line for each direction and mode.

    python -m tests.vm.pairs trixie bookworm              two guests
    python -m tests.vm.pairs trixie:Nehalem near          a guest with another processor, and this machine
    python -m tests.vm.pairs --modes cold trixie trixie
    python -m tests.vm.pairs --uncovered /proc/kcore,/proc/sysrq-trigger trixie:Nehalem near
    python -m tests.vm.pairs --set-up bookworm trixie     ckpt comes by `ckpt host setup` from this machine

Each time a container with a connected client is to move. What is allowed is two things: it moved, and the connection,
the program's memory and its count went along; or it was refused before anything was touched, for a reason that
is told, and goes on where it is. Anything else is an error (exit status 1). The lines are for docs/vm-lab.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.vm import leftovers
from tests.vm.cargo import cargo, wheels_for
from tests.vm.guest import Guest
from tests.vm.image import CannotBuild, image, keys
from tests.vm.installed import ready
from tests.vm.near import Near
from tests.vm.pair import ROOTFS, Client, make_ready, states
from tests.vm.run import why_not
from tests.vm.segment import Segment
from tests.vm.settings import CPU, SUBNET

log = logging.getLogger(__name__)
ADDRESS = f"{SUBNET}.50"
Host = Guest | Near


class Wrong(Exception):
    """Neither moved as a whole nor refused as a whole."""


def describe(host: Host) -> str:
    """Kernel, CRIU, cgroups, processor."""
    said = json.loads(host.text("ckpt doctor --json || true"))
    rows = {row["name"]: row["value"] for row in said["rows"]}
    version = rows.get("CRIU", "?").split()[0]
    cpu = host.cpu.split(",")[0] if isinstance(host, Guest) else "the machine's own"
    kernel = host.text("uname -r").split("+")[0].split("-")[0]
    tree = "v2" if host.text("stat -fc %T /sys/fs/cgroup") == "cgroup2fs" else "v1 hybrid"
    return f"{kernel}, {version}, {tree}, {cpu}"


# A container whose spec has no mounts over some paths of the kernel's.
_UNCOVERED = """
import json, pathlib, sys
spec = json.load(sys.stdin)
for key in ("maskedPaths", "readonlyPaths"):
    spec["linux"][key] = [path for path in spec["linux"][key] if path not in sys.argv[2:]]
pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)
pathlib.Path(sys.argv[1], "config.json").write_text(json.dumps(spec))
"""


def start(source: Host, uncovered: list[str]) -> None:
    """A ticker, whose container has no mounts over the paths UNCOVERED."""
    rootfs = ROOTFS if isinstance(source, Guest) else source.rootfs
    flags = f"--network l2=br0,ip={ADDRESS}/24 {rootfs} -- /bin/ticker -m 16 -p 7000"
    if uncovered:
        bundle = f"{Path(rootfs).parent}/bundle"
        source.run(
            "sh", "-ec", f'ckpt spec {flags} | python3 -c "$0" "$@"', _UNCOVERED, bundle, *uncovered
        )
        flags = bundle
    source.run(f"ckpt run -d --name mover {flags}")


def attempt(
    segment: Segment, source: Host, destination: Host, mode: str, uncovered: list[str]
) -> str:
    """Try it; returns what happened. Raises Wrong."""
    start(source, uncovered)
    while "ready" not in source.text("ckpt", "logs", "mover"):
        time.sleep(0.2)
    client = Client(segment, ADDRESS, 7000)
    try:
        target = f"root@{destination.address}"
        done = source.run(
            f"ckpt migrate mover {target} --mode {mode} --json", check=False, timeout=600
        )
        place = destination if done.returncode == 0 else source
        other = source if done.returncode == 0 else destination
        if states(place) != {"mover": "running"} or states(other) != {}:
            raise Wrong(f"{states(source)} and {states(destination)}: {done.stderr}")
        try:
            exchanged = client.stop()["exchanged"]
        except AssertionError as error:
            raise Wrong(f"{error}; {done.stderr}") from error
        if exchanged < 1:
            raise Wrong("the client has exchanged nothing")
        place.run("ckpt rm -f mover")
        if done.returncode == 0:
            report = json.loads(done.stdout)
            how = f" by {report['tracker']}" if report.get("tracker") else ""
            return (
                f"moved{how}: still for {report['downtime_ms'] / 1e3:.1f} s,"
                f" {report['total_ms'] / 1e3:.0f} s in all"
            )
        if done.returncode != 13:
            raise Wrong(f"exit status {done.returncode}: {done.stderr}")
        return f"refused: {json.loads(done.stderr.splitlines()[-1])['why']}"
    finally:
        client.kill()


class World:
    """The two hosts of a run."""

    def __init__(self, words: list[str], *, set_up: bool) -> None:
        """SET_UP: guests begin with Debian alone."""
        self._set_up = set_up
        self.segment = Segment(leftovers.name("p"))
        self.folder = leftovers.FOLDERS / self.segment.name
        self._stack = ExitStack()
        self.hosts: list[Host] = []
        for letter, word in zip("ab", words, strict=True):
            if word == "near":
                self.hosts.append(Near(self.segment, self.folder / "near"))
                continue
            suite, _, cpu = word.partition(":")
            model = f"{cpu},-cx16" if cpu else CPU  # settings.py says why
            if set_up:
                made = image(suite)
                base, freight = None, cargo(made.info["python"])
            else:
                disk = ready(suite, self.segment.name)
                made, base, freight = disk.image, disk.disk, disk.cargo
            folder = self.folder / letter
            self.hosts.append(
                Guest(letter, made, self.segment, folder, base=base, cargo=freight, cpu=model)
            )

    def __enter__(self) -> World:
        leftovers.end_on_sigterm(self._stack.close)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._stack.callback(self.segment.down)
        try:
            self.segment.up()
            guests = [host for host in self.hosts if isinstance(host, Guest)]
            for guest in guests:
                self._stack.callback(guest.cut_power)
                guest.start()
            for host in self.hosts:
                if isinstance(host, Near):
                    self._stack.callback(host.close)
                    host.up()
            with ThreadPoolExecutor(2) as both:
                list(both.map(make_ready, guests))
            if self._set_up:
                self._install(guests)
            # The one host key of the lab, at the near end too.
            key = (keys() / "host.pub").read_text().split()[:2]
            for guest in guests:
                guest.run(f"echo '{SUBNET}.1 {' '.join(key)}' >>/root/.ssh/known_hosts")
        except BaseException:
            self._stack.close()
            raise
        return self

    def _install(self, guests: list[Guest]) -> None:
        near = Near(self.segment, self.folder / "installer")
        self._stack.callback(near.close)
        near.up(serve=False)
        for guest in guests:
            near.fetch_from(wheels_for(guest.image.info["python"]))
            near.run(f"ckpt host add {guest.name} root@{guest.address}")
            log.info("%s", near.text(f"ckpt host setup {guest.name}", timeout=1500))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def main(words: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="tests.vm.pairs")
    parser.add_argument("--modes", default="cold,warm")
    parser.add_argument("--set-up", action="store_true")
    parser.add_argument("--uncovered", default="", metavar="PATH,...")
    parser.add_argument("hosts", nargs=2, metavar="SUITE[:CPU]|near")
    given = parser.parse_args(words)
    if reason := why_not():
        print(f"pairs: {reason}", file=sys.stderr)
        return 1
    failed = 0
    uncovered = [path for path in given.uncovered.split(",") if path]
    leftovers.end_on_sigterm()
    leftovers.sweep()
    try:
        with World(given.hosts, set_up=given.set_up) as world:
            described = {host.name: describe(host) for host in world.hosts}
            first, second = world.hosts
            for source, destination in ((first, second), (second, first)):
                for mode in given.modes.split(","):
                    try:
                        what = attempt(world.segment, source, destination, mode, uncovered)
                    except Wrong as error:
                        what, failed = f"WRONG: {error}", 1
                        for host in world.hosts:
                            host.run("ckpt ps -aq | xargs -r ckpt rm -f", check=False)
                    here, there = described[source.name], described[destination.name]
                    print(f"| {here} | {there} | {mode} | {what} |", flush=True)
    except CannotBuild as error:
        print(f"pairs: {error}", file=sys.stderr)
        return 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
