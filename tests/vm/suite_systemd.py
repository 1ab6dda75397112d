"""Beside systemd: our cgroups are ours, its own stay as they are, and containers outlive what started them."""

from __future__ import annotations

import pytest

from tests.vm.guest import Guest
from tests.vm.inside import run_tests
from tests.vm.pair import IDLE, ROOTFS, Pair, cgroup, states
from tests.vm.settings import SUBNET

pytestmark = pytest.mark.timeout(3600)

INIT = "systemd"

_UNITS = "systemctl list-units --all --no-legend --plain --type=service,slice | awk '{print $1, $3}' | sort"
# Sessions come and go with each login, the kernel's own threads (without a command line) as they like.
_THEIRS = (
    "cd /sys/fs/cgroup && find . -type d ! -path './ckpt.slice*' ! -path './user.slice/*' | sort"
    " && for p in $(cat cgroup.procs); do grep -q . /proc/$p/cmdline && echo $p; done 2>/dev/null;"
    " cat system.slice/cgroup.subtree_control system.slice/ssh.service/memory.max"
)


def _cgroup(guest: Guest, pid: str) -> str:
    return guest.text(f"cat /proc/{pid}/cgroup").removeprefix("0::")


def _of_systemd(guest: Guest) -> set[str]:
    """Units and cgroups that aren't ours, lines of their settings."""
    lines = set(f"{guest.text(_UNITS)}\n{guest.text(_THEIRS)}".splitlines())
    # Mounted by systemd itself as soon as anybody looks there.
    return {line for line in lines if "binfmt_misc" not in line}


@pytest.mark.parametrize(
    "file", ["tests/contract/test_cgroups_contract.py", "tests/e2e/test_cgroups.py"]
)
def test_passes_beside_systemd(a: Guest, file: str) -> None:
    assert "passed" in run_tests(a, file)


def test_nothing_of_systemds_is_touched(a: Guest) -> None:
    # What systemd does by itself is over, and what it only remembers is forgotten.
    a.run("systemctl is-system-running --wait || true; systemctl daemon-reload")
    before = _of_systemd(a)
    a.run(f"ckpt run -d --name one -m 64m --cpus 0.5 {IDLE}")
    a.run("ckpt dump one --leave-running --as kept && ckpt checkpoints rm kept")
    a.run("systemctl daemon-reload")
    assert _of_systemd(a) ^ before == set()
    a.run("ckpt rm -f one")
    assert _of_systemd(a) ^ before == set()


def test_limits_hold_when_systemd_reloads(a: Guest) -> None:
    a.run(f"ckpt run -d --name one -m 64m --network none {IDLE}")
    read = f"cat {cgroup(a, 'one')}/memory.max"
    before = a.text(read)
    a.run("systemctl daemon-reload && systemctl daemon-reexec")
    assert a.text(read) == before == str(64 << 20)
    assert states(a) == {"one": "running"}


def test_a_container_and_its_monitor_are_not_in_their_starters_cgroup(a: Guest) -> None:
    """A session or a service that ends takes its cgroup's processes along."""
    a.run("systemd-run --wait --collect --unit starter ckpt run -d --name one --network none"
          f" {IDLE}")  # fmt: skip
    assert states(a) == {"one": "running"}
    pids = a.text("pgrep -f '[/]monitor/__main__.py'; pgrep -x ticker").split()
    assert len(pids) >= 2
    assert [_cgroup(a, pid) for pid in pids if not _cgroup(a, pid).startswith("/ckpt.slice/")] == []
    a.run("ckpt dump one --as c")
    a.run("systemd-run --wait --collect --unit starter ckpt restore c --as two")
    assert states(a)["two"] == "running"


def test_containers_move_between_hosts_with_systemd(pair: Pair) -> None:
    address = f"{SUBNET}.50"
    flags = f"-m 64m --network l2=br0,ip={address}/24"
    pair.a.run(f"ckpt run -d --name mover {flags} {ROOTFS} -- ticker -m 16 -p 7000")
    while "ready" not in pair.a.text("ckpt logs mover"):
        pass
    with pair.client(address, 7000) as client:
        pair.a.run("ckpt migrate mover b", timeout=400)
        assert states(pair.b) == {"mover": "running"}
        assert client.stop()["exchanged"] > 10
    # The agent's SSH session is over; what it restored isn't.
    pid = pair.b.text("pgrep -x ticker")
    assert _cgroup(pair.b, pid).startswith("/ckpt.slice/")
