"""`make test-vm`: everything that has to be true on stock Debian machines, tried on two of them.

    python -m tests.vm.run [pytest's options]

SUITE=bookworm|trixie|sid chooses the Debian, SUITE_B another one for the second guest. Where guests can't be had
it says why and is content: exit status 0, unless CKPT_VM_REQUIRED=1. Logs of failed tests: /var/tmp/ckpt-vm/logs.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.vm import leftovers
from tests.vm.image import CannotBuild
from tests.vm.installed import READY, installed
from tests.vm.settings import DEFAULT_SUITE, REPO, SUITES

_TOOLS = ("qemu-system-x86_64", "qemu-img", "debootstrap", "mke2fs", "ip", "ssh", "ssh-keygen")
_PACKAGES = "qemu-system-x86 qemu-utils debootstrap e2fsprogs iproute2 openssh-client"
_ORDER = ("first", "migrate", "services", "inside", "systemd", "reboot")


def why_not() -> str:
    """Why guests can't be had here; "" if they can."""
    if os.geteuid() != 0:
        return "guests need root: taps, a bridge, chroot"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt install {_PACKAGES})"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    free = shutil.disk_usage("/var/tmp").free
    if free < 6 << 30:
        return f"/var/tmp has {free >> 30} GiB free, 6 are needed"
    return ""


def suites() -> list[str]:
    """The suites' files in their order: guests with one init system after those with the other."""
    here = Path(__file__).parent
    return [str(file) for name in _ORDER if (file := here / f"suite_{name}.py").exists()]


def main(options: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    began = time.monotonic()
    leftovers.end_on_sigterm()
    chosen = [os.environ.get(name) for name in ("SUITE", "SUITE_B")]
    wanted = [suite for suite in chosen if suite] or [DEFAULT_SUITE]
    if unknown := set(wanted) - set(SUITES):
        print(f"test-vm: {', '.join(unknown)} is none of {', '.join(SUITES)}", file=sys.stderr)
        return 2
    reason = why_not()
    if not reason:
        leftovers.sweep()
        try:
            # Before pytest, whose time limits are for tests, and so that a mirror that fails isn't a failed test.
            ready = [installed(suite, leftovers.name()) for suite in wanted]
            os.environ[READY] = ":".join(str(one.folder) for one in ready)
        except CannotBuild as error:
            if "installing ckpt" in str(error):
                print(f"test-vm: {error}", file=sys.stderr)
                return 1
            reason = str(error)
    if reason:
        print(f"test-vm: skipped: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CKPT_VM_REQUIRED") == "1" else 0
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--timeout=900",
        "--durations=0",
    ]
    named = any(not option.startswith("-") and option.endswith(".py") for option in options)
    status = _to_its_end([*command, *options, *([] if named else suites())])
    print(f"test-vm: {', '.join(wanted)}: {time.monotonic() - began:.0f} s in all")
    return status


def _to_its_end(command: list[str]) -> int:
    """pytest's exit status. Ctrl-C and SIGTERM are for us alone, who interrupt it: it then takes its guests down."""
    with subprocess.Popen(command, cwd=REPO, process_group=0) as running:
        try:
            return running.wait()
        except BaseException:
            running.send_signal(signal.SIGINT)
            running.wait()
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
