"""What an installed ckpt does on a stock Debian: the doctor's word, a container's life, a checkpoint of it."""

from __future__ import annotations

import pytest

from tests.vm.guest import Guest
from tests.vm.pair import ROOTFS, cgroup, ckpt_json, states

pytestmark = pytest.mark.timeout(900)

_COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def _last_line(guest: Guest, name: str) -> int:
    return int(guest.text(f"ckpt logs -n 1 {name}") or 0)


def test_a_stock_debian_lacks_nothing_that_ckpt_needs(a: Guest) -> None:
    rows = ckpt_json(a, "doctor")["rows"]
    assert [row for row in rows if row["level"] == "bad"] == []


def test_a_container_is_limited_entered_and_counted_on_pure_cgroup_v2(a: Guest) -> None:
    a.run(f"ckpt run -d --name box -m 64m --pids-limit 20 --network none {ROOTFS} -- sleep 1000")
    folder = cgroup(a, "box")
    assert a.text(f"cat {folder}/memory.max {folder}/pids.max").split() == [str(64 << 20), "20"]
    assert "sleep 1000" in a.text("ckpt exec box -- ps")
    assert ckpt_json(a, "stats", "box")


@pytest.mark.parametrize("flags", ["", "--userns host"], ids=["user-namespace", "host-ids"])
def test_a_dumped_container_goes_on_counting_when_restored(a: Guest, flags: str) -> None:
    a.run(f"ckpt run -d --name n {flags} --network none {ROOTFS} -- sh -c '{_COUNTER}'")
    while _last_line(a, "n") < 5:
        pass
    a.run("ckpt dump n --as one")
    dumped = _last_line(a, "n")
    assert states(a)["n"] == "stopped"
    a.run("ckpt restore one --as again")
    while _last_line(a, "again") <= dumped:
        pass
    lines = [int(line) for line in a.text("ckpt logs again").split()]
    assert lines == list(range(lines[0], lines[-1] + 1))
    assert lines[0] <= dumped + 1


def test_what_ran_is_gone_with_rm(a: Guest) -> None:
    a.run(f"ckpt run -d --name gone --publish 8080:80 {ROOTFS} -- sleep 1000")
    a.run("ckpt rm -f gone")
    left = a.text(
        "find /sys/fs/cgroup/ckpt*/ -mindepth 1 -type d ! -name monitors; ip -o link | grep -E ' ck' || true"
    )
    assert left == ""
