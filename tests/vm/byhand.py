"""Guests by hand, until they are taken down again.

tests/vm/lab up a trixie systemd   start guest a: [SUITE [INIT]]; ckpt is installed in it
tests/vm/lab bare b sid            the same without ckpt
tests/vm/lab ssh a 'ckpt ps'       run a command line; without one, a shell
tests/vm/lab cut a                 cut the power
tests/vm/lab start a               switch it on again, on the same disk
tests/vm/lab near 'ping -c1 10..'  run a command line at the near end of the wire
tests/vm/lab down                  stop all of them and forget their disks
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.cargo import cargo, checkout_files
from tests.vm.guest import Guest, GuestError
from tests.vm.image import CannotBuild, Image, image
from tests.vm.installed import HOME, ready
from tests.vm.segment import Segment
from tests.vm.settings import CACHE, DEFAULT_SUITE, GUESTS, REPO

NAME = "ckpt-vmhand"
PLACE = CACHE / "hand"


def _guest(name: str) -> Guest:
    if name not in GUESTS:
        raise GuestError(f"guests are called {' and '.join(GUESTS)}")
    try:
        saved = json.loads((PLACE / name / "guest.json").read_text())
    except FileNotFoundError as error:
        raise GuestError(f"guest {name} isn't up") from error
    return Guest(
        name, Image(Path(saved["image"])), Segment(NAME), PLACE / name,
        base=Path(saved["base"]) if saved["base"] else None,
        init=saved["init"], cargo=Path(saved["cargo"]),
    )  # fmt: skip


def _up(name: str, suite: str, init: str, *, bare: bool) -> None:
    if bare:
        made, base = image(suite), None
        freight = cargo(made.info["python"])
    else:
        # What another run has made will do, when the checkout goes on changing.
        disk = ready(suite, NAME)
        made, base, freight = disk.image, disk.disk, disk.cargo
    (PLACE / name).mkdir(parents=True, exist_ok=True)
    words = {"image": made.folder, "base": base or "", "init": init, "cargo": freight}
    described = json.dumps({key: str(value) for key, value in words.items()})
    (PLACE / name / "guest.json").write_text(described)
    guest = _guest(name)
    guest.start()
    guest.wait()


def _sync(guest: Guest) -> None:
    """Python code only: what has to be built or installed needs a new guest."""
    names = "\0".join(checkout_files())
    pack = ["tar", "-czf", "-", "-C", str(REPO), "--null", "--ignore-failed-read", "-T", "-"]
    packed = subprocess.run(pack, input=names.encode(), stdout=subprocess.PIPE, check=True).stdout
    guest.run(f"tar -xzf - -C {HOME} --no-same-owner", input=packed, text=False)
    guest.run(
        f"cd {HOME} && cp -r ckpt runtime images transport /usr/local/lib/ckpt/venv/lib/python3*/site-packages/"
    )


def _down() -> None:
    for name in GUESTS:
        if (PLACE / name / "guest.json").exists():
            _guest(name).cut_power()
    Segment(NAME).down()
    shutil.rmtree(PLACE, ignore_errors=True)


def main(words: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        match words:
            case ["up" | "bare" as how, name, *more]:
                suite, init = [*more, *(DEFAULT_SUITE, "tiny")[len(more) :]]
                _up(name, suite, init, bare=how == "bare")
            case ["ssh", name, *command]:
                guest = _guest(name)
                os.execvp("nsenter", guest.argv(*(command or ["exec $SHELL -l"])))
            case ["sync", *names]:
                for name in names:
                    _sync(_guest(name))
            case ["cut", name]:
                _guest(name).cut_power()
            case ["start", name]:
                guest = _guest(name)
                guest.start()
                guest.wait()
            case ["near", line]:
                os.execvp("nsenter", Segment(NAME).argv("sh", "-c", line))
            case ["down"]:
                _down()
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (CannotBuild, GuestError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
