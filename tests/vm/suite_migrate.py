"""Containers move from one machine to the other, and back, while a client talks to them."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.vm.guest import Guest
from tests.vm.pair import ROOTFS, Pair, cgroup, ckpt_json, states
from tests.vm.settings import SUBNET

pytestmark = pytest.mark.timeout(900)

ADDRESS = f"{SUBNET}.50"
_TICKER = f"--network l2=br0,ip={ADDRESS}/24 {ROOTFS} -- ticker -m 16 -p 7000"


def _start(guest: Guest, words: str, name: str = "mover") -> None:
    guest.run(f"ckpt run -d --name {name} {words}")
    while "ready" not in guest.text("ckpt", "logs", name):
        pass


@pytest.mark.parametrize("mode", ["cold", "warm", "lazy"])
def test_an_established_connection_survives_the_way_there_and_back(pair: Pair, mode: str) -> None:
    _start(pair.a, _TICKER)
    with pair.client(ADDRESS, 7000) as client:
        pair.a.run(f"ckpt migrate mover b --mode {mode}", timeout=400)
        assert states(pair.a) == {}
        assert states(pair.b) == {"mover": "running"}
        pair.b.run(f"ckpt migrate mover a --mode {mode}", timeout=400)
        assert states(pair.a) == {"mover": "running"}
        assert client.stop()["exchanged"] > 10


def test_limits_are_at_the_destination_what_they_were_at_the_source(pair: Pair) -> None:
    limits = "-m 96m --cpus 0.5 --pids-limit 50 --cpu-shares 512"
    _start(pair.a, f"{limits} --network none {ROOTFS} -- ticker -m 16")
    files = "memory.max cpu.max pids.max cpu.weight"
    before = pair.a.text(f"cd {cgroup(pair.a, 'mover')} && cat {files}")
    pair.a.run("ckpt migrate mover b", timeout=400)
    assert pair.b.text(f"cd {cgroup(pair.b, 'mover')} && cat {files}") == before
    assert str(96 << 20) in before


_QUOTAS = (
    "truncate -s 300M /var/tmp/quotas && mkdir -p /var/lib/ckpt && "
    "mke2fs -q -F -t ext4 -O quota,project -E quotatype=prjquota /var/tmp/quotas && "
    "mount -o loop,prjquota /var/tmp/quotas /var/lib/ckpt"
)
_WRITER = (
    "mkfifo /go; exec 3<>/go; head -c 10m /dev/zero >/half; echo ready; "
    "read _ <&3; dd if=/dev/zero of=/more bs=1M count=40; echo done; read _ <&3"
)


def _disk(guest: Guest) -> dict[str, int]:
    return dict(json.loads(guest.text("ckpt inspect mover"))["disk"])


def test_a_disk_limit_is_the_same_at_the_destination_and_holds_there(pair: Pair) -> None:
    with ExitStack() as undo:
        pair.a.run(_QUOTAS)
        undo.callback(pair.a.run, "ckpt rm -f mover; umount /var/lib/ckpt")
        _start(pair.a, f"--disk 20m --network none {ROOTFS} -- sh -c '{_WRITER}'")
        refused = pair.a.run("ckpt migrate mover b 2>&1; echo $?", timeout=400).stdout
        assert "no project quotas" in refused and refused.split()[-1] == "13"
        pair.b.run(_QUOTAS)
        undo.callback(pair.b.run, "ckpt rm -f mover; umount /var/lib/ckpt")
        before = _disk(pair.a)
        pair.a.run("ckpt migrate mover b", timeout=400)
        after = _disk(pair.b)
        assert after["limit"] == before["limit"] == 20 << 20
        assert abs(after["used"] - before["used"]) < 1 << 20
        # The program that moved writes on, into the limit.
        pair.b.run("ckpt exec mover sh -c 'echo >/go'")
        while "done" not in (said := pair.b.text("ckpt logs mover 2>&1")):
            pass
        assert "Disk quota exceeded" in said
        assert 19 << 20 < _disk(pair.b)["used"] <= 20 << 20


def test_a_dry_run_says_what_is_to_be_expected_and_changes_nothing(pair: Pair) -> None:
    _start(pair.a, f"--network none {ROOTFS} -- ticker")
    pair.a.run("ckpt migrate mover b --dry-run")
    assert states(pair.a) == {"mover": "running"}
    assert states(pair.b) == {}


def test_a_published_port_answers_at_the_new_place(pair: Pair) -> None:
    _start(pair.a, f"--network bridge --publish 8070:7000 {ROOTFS} -- ticker -p 7000")
    with pair.client(pair.a.address, 8070) as client:
        client.stop()
    pair.a.run("ckpt migrate mover b", timeout=400)
    with pair.client(pair.b.address, 8070) as client:
        client.stop()


def test_a_destination_that_loses_power_midway_leaves_the_source_running(pair: Pair) -> None:
    """The destination's power is cut before COMMIT: the source goes on."""
    _start(pair.a, _TICKER)
    moving = pair.a.popen("ckpt migrate mover b --timeout 60")
    while pair.b.text("ls /var/lib/ckpt/migrations 2>/dev/null || true") == "":
        assert moving.poll() is None, "it was over before the power could be cut"
    pair.b.cut_power()
    assert moving.wait(timeout=300) != 0
    assert states(pair.a) == {"mover": "running"}
    pair.b.start()
    pair.b.wait()
    pair.b.run("ckpt recover")
    assert states(pair.b) == {}
    with pair.client(ADDRESS, 7000) as client:
        assert client.stop()["exchanged"] >= 0


def test_what_moved_is_listed_with_its_new_address(pair: Pair) -> None:
    _start(pair.a, _TICKER)
    pair.a.run("ckpt migrate mover b", timeout=400)
    (entry,) = ckpt_json(pair.b, "ps")
    assert ADDRESS in str(entry)
