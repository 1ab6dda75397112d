"""runc and podman, for measuring beside ckpt: Debian's newest, in a place of their own.

    python -m benchmarks.peers               set them up in .peers (about a minute; again: nothing)
    python -m benchmarks.peers --remove      take that away

They get what is fair: the same workload, the same two hosts' ssh between them (with the quicker cipher), images,
storage and archives in memory. And they are kept apart, since engines with root's rights go wrong in grand style (one
was seen to kill every process of the root cgroup after a restore): own mount, pid and cgroup namespaces, own cgroups,
the root directory of another Debian. Whatever they start ends with the first process in there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.apart import PeerFault
from benchmarks.results import say
from tests.vm import mirror

OUT = Path(__file__).resolve().parents[1] / ".peers"
"""Not below this package: tools that look through it would take a whole Debian along."""
SUITE = "sid"
PACKAGES = ("criu", "runc", "podman", "conmon", "iptables", "nftables", "ca-certificates")
_SAYS_NO = "#!/bin/sh\nexit 101\n"


def setup(suite: str = SUITE) -> Path:
    """The root directory with the peers, made if it isn't there. Raises PeerFault."""
    root = OUT / suite
    if (root / "usr/bin/podman").exists():
        return root
    if os.geteuid() or shutil.which("debootstrap") is None:
        raise PeerFault("setting up the peers needs root and debootstrap (apt install debootstrap)")
    made = OUT / f".{suite}.new"
    remove(made)
    made.mkdir(parents=True)
    try:
        address = mirror.address(suite)
        name, source = mirror.source(suite)
    except mirror.Unreachable as error:
        raise PeerFault(f"Debian {suite}: {error}") from error
    _call("debootstrap", "--variant=minbase", suite, made, address)
    for old in (made / "etc/apt").glob("sources.list*/*"):
        old.unlink()
    (made / "etc/apt/sources.list").unlink(missing_ok=True)
    (made / "etc/apt/sources.list.d").mkdir(exist_ok=True)
    (made / "etc/apt/sources.list.d" / name).write_text(source)
    (made / "etc/apt/apt.conf.d/transport").write_text(mirror.transport_options())
    with contextlib.suppress(OSError):
        shutil.copyfile("/etc/resolv.conf", made / "etc/resolv.conf")
    policy = made / "usr/sbin/policy-rc.d"
    policy.write_text(_SAYS_NO)
    policy.chmod(0o755)
    script = "mount -t proc proc proc && exec chroot . sh -c"
    apt = "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && apt-get -q -y install --no-install-recommends"
    # Packages' scripts see no process but their own.
    _call(
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
        *("sh", "-ec", f'cd "$0"; {script} "$1"', made, f"{apt} {' '.join(PACKAGES)}"),
    )
    made.rename(root)
    return root


def remove(place: Path) -> None:
    """Delete a directory tree, unless something is mounted in it. Raises PeerFault."""
    if not place.exists():
        return
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4].startswith(str(place)):
            raise PeerFault(f"{line.split()[4]} is mounted: {place} is not removed")
    shutil.rmtree(place)


def _call(*argv: object) -> None:
    done = subprocess.run(
        [*map(str, argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise PeerFault(f"{argv[0]}: {done.stdout[-1500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--remove", action="store_true", help="take them away again")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.remove:
            remove(OUT)
        else:
            say(f"set up in {setup()}")
    except PeerFault as fault:
        sys.exit(f"peers: {fault}")


if __name__ == "__main__":
    main()
