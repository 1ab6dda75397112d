"""`make test-vm-smoke`: the shortest proof that ckpt works on stock Debian, in a few minutes.

Two guests with nothing of ours. In one, ckpt is installed as the documentation says; it sets the other up over SSH; a
container with a connected client moves there cold and back warm. Nothing of an earlier run is used but Debian's image.

Where guests can't be had it says why and is content: exit status 0, unless CKPT_VM_REQUIRED=1. SUITE as for test-vm.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.vm.cargo import CHECKOUT, PIP, cargo
from tests.vm.guest import Guest, GuestError
from tests.vm.image import CannotBuild, image
from tests.vm.installed import HOME, commands
from tests.vm.pair import ROOTFS, Client, make_rootfs, states
from tests.vm.run import why_not
from tests.vm.segment import Segment
from tests.vm.settings import DEFAULT_SUITE, SUBNET

ADDRESS = f"{SUBNET}.50"
LOGS = Path(os.environ.get("CKPT_VM_LOGS", "/var/tmp/ckpt-vm/logs")) / "smoke"
_began = time.monotonic()


def step(what: str) -> None:
    print(f"test-vm-smoke: {time.monotonic() - _began:5.0f} s  {what}", flush=True)


def install(guest: Guest) -> None:
    """docs/install.md, word for word, with a directory of wheels in place of PyPI."""
    environment = " ".join(f"{key}={shlex.quote(value)}" for key, value in PIP.items())
    guest.run(f"cp -r {CHECKOUT} {HOME}")
    for line in commands():
        guest.run(f"cd {HOME} && export {environment} && {line}", timeout=900)
        step(f"{guest.name}: {line}")


def move(source: Guest, destination: Guest, mode: str) -> None:
    said = source.text(f"ckpt migrate mover {destination.name} --mode {mode}", timeout=400)
    step(f"{source.name} → {destination.name} {mode}: {said.splitlines()[-2]}")
    there, left = states(destination), states(source)
    if there != {"mover": "running"} or left:
        raise AssertionError(f"{destination.name} has {there}, {source.name} {left}")


def smoke(a: Guest, b: Guest, segment: Segment) -> None:
    for guest in (a, b):
        guest.start()
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda guest: guest.wait(), (a, b)))
    step(f"up: Debian {a.image.info['suite']}, Linux {a.image.info['kernel']}")
    install(a)
    a.run("ckpt host add b root@b")
    a.run("ckpt host setup b", timeout=600)
    b.run("ckpt host add a root@a")
    step("a has set b up over SSH")
    make_rootfs(a)
    a.run(f"ckpt run -d --name mover --network l2=br0,ip={ADDRESS}/24 {ROOTFS} -- ticker -p 7000")
    while "ready" not in a.text("ckpt logs mover"):
        time.sleep(0.2)
    client = Client(segment, ADDRESS, 7000)
    try:
        move(a, b, "cold")
        move(b, a, "warm")
        said = client.stop()
    finally:
        client.kill()
    step(f"one connection, {said['exchanged']} lines, none lost")
    if bad := [*a.complaints(), *b.complaints()]:
        raise AssertionError(f"a kernel complains: {bad[0]}")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    reason = why_not()
    if not reason:
        try:
            made = image(os.environ.get("SUITE") or DEFAULT_SUITE)
            freight = cargo(made.info["python"])
        except CannotBuild as error:
            reason = str(error)
    if reason:
        print(f"test-vm-smoke: skipped: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CKPT_VM_REQUIRED") == "1" else 0
    step("image and wheels are there")
    name = f"ckpt-vms{os.getpid()}"
    segment, folder = Segment(name), Path("/var/tmp") / name
    a, b = (Guest(letter, made, segment, folder / letter, cargo=freight) for letter in "ab")
    try:
        smoke(a, b, segment)
    except (AssertionError, GuestError, subprocess.SubprocessError) as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        print(f"test-vm-smoke: FAILED: {error}\n{notes}", file=sys.stderr)
        for guest in (a, b):
            if guest.pid():
                guest.collect(["/var/lib/ckpt/logs", "/var/lib/ckpt/containers"], LOGS / guest.name)
            if guest.console.exists():
                shutil.copy(guest.console, LOGS / guest.name)
        print(f"test-vm-smoke: logs are in {LOGS}", file=sys.stderr)
        return 1
    finally:
        for guest in (a, b):
            guest.cut_power()
        segment.down()
        shutil.rmtree(folder, ignore_errors=True)
    step("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
