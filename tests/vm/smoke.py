"""`make test-vm-smoke`: the shortest proof that ckpt works on stock Debian, in a few minutes.

Two guests with nothing of ours. In one, ckpt is installed as the documentation says; meanwhile this machine sets the
other up over SSH, with its own CRIU and with libraries for another Python. Then containers with a connected client move
from the one to the other, cold and warm. Nothing of an earlier run is used but Debian's image.

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

from tests.vm import leftovers
from tests.vm.cargo import CHECKOUT, PIP, cargo, wheels_for
from tests.vm.guest import Guest, GuestError
from tests.vm.image import CannotBuild, image
from tests.vm.installed import HOME, commands
from tests.vm.near import Near
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
    guest.wait()
    step(f"{guest.name}: up, Debian {guest.image.info['suite']}, {guest.image.info['kernel']}")
    environment = " ".join(f"{key}={shlex.quote(value)}" for key, value in PIP.items())
    guest.run(f"cp -r {CHECKOUT} {HOME}")
    for line in commands():
        guest.run(f"cd {HOME} && export {environment} && {line}", timeout=1500)
        step(f"{guest.name}: {line}")
    make_rootfs(guest)


def set_up(guest: Guest, near: Near) -> None:
    """From here, over SSH."""
    near.fetch_from(wheels_for(guest.image.info["python"]))
    near.up(serve=False)
    guest.wait()
    near.run(f"ckpt host add {guest.name} root@{guest.address}")
    said = near.text(f"ckpt host setup {guest.name}", timeout=1500)
    step(f"{guest.name}: ckpt host setup; {said.splitlines()[-1]}")


def move(source: Guest, destination: Guest, mode: str) -> None:
    """A container of its own, with a client that stays connected."""
    flags = f"--network l2=br0,ip={ADDRESS}/24 {ROOTFS}"
    source.run(f"ckpt run -d --name {mode} {flags} -- ticker -m 16 -p 7000")
    while "ready" not in source.text("ckpt", "logs", mode):
        time.sleep(0.2)
    client = Client(source.segment, ADDRESS, 7000)
    try:
        said = source.text(f"ckpt migrate {mode} {destination.name} --mode {mode}", timeout=600)
        there, left = states(destination), states(source)
        if there != {mode: "running"} or left:
            raise AssertionError(f"{destination.name} has {there}, {source.name} {left}")
        exchanged = client.stop()["exchanged"]
    finally:
        client.kill()
    (summary,) = (line for line in said.splitlines() if " runs at " in line)
    step(f"{summary}; its client: {exchanged} lines on one connection, none lost")
    destination.run(f"ckpt rm -f {mode}")


def smoke(a: Guest, b: Guest, near: Near) -> None:
    for guest in (a, b):
        guest.start()
    with ThreadPoolExecutor(2) as both:
        for ready in (both.submit(install, a), both.submit(set_up, b, near)):
            ready.result()
    for mode in ("cold", "warm"):
        move(a, b, mode)
    if bad := [*a.complaints(), *b.complaints()]:
        raise AssertionError(f"a kernel complains: {bad[0]}")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    reason = why_not()
    if not reason:
        leftovers.end_on_sigterm()
        leftovers.sweep()
        try:
            made = image(os.environ.get("SUITE") or DEFAULT_SUITE)
            freight = cargo(made.info["python"])
        except CannotBuild as error:
            reason = str(error)
    if reason:
        print(f"test-vm-smoke: skipped: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CKPT_VM_REQUIRED") == "1" else 0
    step("image and wheels are there")
    name = leftovers.name("s")
    segment, folder = Segment(name), leftovers.FOLDERS / name
    a, b = (Guest(letter, made, segment, folder / letter, cargo=freight) for letter in "ab")
    near = Near(segment, folder / "near")

    def clean_up() -> None:
        for guest in (a, b):
            guest.cut_power()
        near.close()
        segment.down()
        shutil.rmtree(folder, ignore_errors=True)

    leftovers.end_on_sigterm(clean_up)
    try:
        smoke(a, b, near)
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
        clean_up()
    step("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
