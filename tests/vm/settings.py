"""What guests are made of and where things lie. What somebody may want to change comes from the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILES = Path(__file__).resolve().parent / "files"

CACHE = Path(os.environ.get("CKPT_VM_CACHE", "/var/tmp/ckpt-vm"))
"""Images and wheels. May be deleted whenever no guest runs."""

SUITES = ("bookworm", "trixie", "sid")
DEFAULT_SUITE = "trixie"

# la57=off: page tables of four levels are quicker to walk under emulation.
# -cx16: QEMU 7.2 leaves garbage in the flags when an interrupt follows cmpxchg16b, with which the
# kernel's allocator does each allocation: guests panicked at random. It costs newer ones nothing.
CPU = os.environ.get("CKPT_VM_CPU", "max,la57=off,-cx16")
MEMORY_MB = int(os.environ.get("CKPT_VM_MEMORY", "1280"))
DISK = "6G"
"""Size of a guest's root file system. Sparse: an image takes what is in it."""

SUBNET = "10.86.0"
GUESTS = {"a": 11, "b": 12}
"""Names of guests, and the last part of their address. The near end of the wire is .1."""

# Mitigations and probing for hardware that isn't there only cost time under emulation.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check"
    " nowatchdog audit=0 net.ifnames=0 root=/dev/vda rw systemd.getty_auto=0"
)

_LAB = [
    *("linux-image-cloud-amd64", "systemd-sysv", "dbus", "udev", "kmod", "cron"),
    *("make", "tar", "iputils-ping", "busybox-static", "netcat-openbsd"),
]


def packages(suite: str) -> list[str]:
    """Debian packages of an image: the guest's own, and all that scripts/setup would install."""
    text = (REPO / "scripts/setup").read_text()
    found = list(_LAB)
    if suite != "bookworm":  # whose CRIU is too old: image.py has setup-criu make the private copy
        found += ["criu", "python3-pycriu"]
    for name in ("run", "demo", "test"):
        block = re.search(rf"^{name}=\((.*?)\)$", text, re.M | re.S)
        assert block, f"scripts/setup has no list {name}"
        found += re.sub(r"#.*", "", block[1]).split()
    return sorted(set(found) - {"debootstrap"})
