"""The power goes: which containers are there again afterwards, and what the units that are shipped do."""

from __future__ import annotations

import pytest

from tests.vm.guest import Guest
from tests.vm.pair import IDLE, ROOTFS, cgroup, ckpt_json, states

pytestmark = pytest.mark.timeout(1200)

INIT = "systemd"

_COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def _reboot(guest: Guest) -> None:
    """As a failing power supply does it, with what was on disk before."""
    guest.run("sync")
    guest.cut_power()
    guest.start()
    guest.wait()
    guest.run("systemctl is-system-running --wait || true")


def _unit(guest: Guest, name: str, what: str) -> str:
    return guest.text("systemctl", "show", "-P", what, name)


def test_the_boot_unit_brings_back_what_is_to_run(a: Guest) -> None:
    a.run("systemctl enable ckpt-recover.service")
    quiet = f"--network none {IDLE}"
    a.run(f"ckpt run -d --name always --restart always -m 64m --publish 8090:80 {IDLE}")
    a.run(f"ckpt run -d --name never {quiet}")
    a.run(f"ckpt run -d --name stopped --restart always {quiet} && ckpt stop stopped")
    _reboot(a)
    assert _unit(a, "ckpt-recover.service", "Result") == "success"
    assert states(a) == {"always": "running", "never": "lost", "stopped": "stopped"}
    assert a.text(f"cat {cgroup(a, 'always')}/memory.max") == str(64 << 20)
    a.run("systemctl stop ckpt-recover.service")
    assert states(a)["always"] == "running"
    a.run("systemctl disable ckpt-recover.service")


def test_an_orderly_reboot_brings_back_what_is_to_run(a: Guest) -> None:
    """systemd ends containers before it ends the machine: that isn't their own end."""
    a.run("systemctl enable ckpt-recover.service")
    a.run(f"ckpt run -d --name always --restart always --network none {IDLE}")
    a.run("systemctl reboot", check=False)
    a.wait_off()
    a.start()
    a.wait()
    a.run("systemctl is-system-running --wait || true")
    assert states(a) == {"always": "running"}
    a.run("systemctl disable ckpt-recover.service")


def test_who_chose_so_goes_on_where_the_newest_checkpoint_has_it(a: Guest) -> None:
    flags = "--restart always --label org.ckpt.recover=checkpoint --network none"
    a.run(f"ckpt run -d --name n {flags} {ROOTFS} -- sh -c '{_COUNTER}'")
    while int(a.text("ckpt logs -n 1 n") or 0) < 10:
        pass
    a.run("ckpt dump n --leave-running --as kept")
    a.cut_power()
    a.start()
    a.wait()
    assert "restored from checkpoint kept" in a.text("ckpt recover")
    assert states(a) == {"n": "running"}
    lines = a.text("ckpt logs n").split()
    assert int(lines[-1]) > 10
    assert lines.count("1") <= 1, "it began anew"


def test_checkpoints_from_before_the_power_cut_are_whole(a: Guest) -> None:
    a.run(f"ckpt run -d --name n --network none {ROOTFS} -- ticker -m 16")
    a.run("ckpt dump n --leave-running --as before")
    a.cut_power()  # without sync: what `dump` reported is on disk
    a.start()
    a.wait()
    a.run("ckpt recover")
    a.run("ckpt checkpoints verify before")
    a.run("ckpt restore before --as again")
    assert states(a)["again"] == "running"


def test_a_dump_that_the_power_cut_ended_leaves_nothing(a: Guest) -> None:
    a.run(f"ckpt run -d --name n --network none --restart always {ROOTFS} -- ticker -m 200")
    while "ready" not in a.text("ckpt logs n"):
        pass
    dumping = a.popen("ckpt dump n --as half")
    while a.text("ls -A /var/lib/ckpt/checkpoints 2>/dev/null || true") == "":
        assert dumping.poll() is None
    a.cut_power()
    dumping.wait()
    a.start()
    a.wait()
    a.run("ckpt recover")
    assert states(a) == {"n": "running"}
    assert ckpt_json(a, "checkpoints", "ls") == []


def test_the_timers_units_dump_and_prune(a: Guest) -> None:
    a.run(f"ckpt run -d --name web --network none {IDLE}")
    a.put("/etc/default/ckpt", 'CKPT_PRUNE="--keep 2 --container web"\n')
    for _ in range(3):
        a.run("systemctl start ckpt-dump@web.service && sleep 1.1")
    assert states(a) == {"web": "running"}
    assert len(ckpt_json(a, "checkpoints", "ls")) == 3
    a.run("systemctl start ckpt-prune.service")
    assert len(ckpt_json(a, "checkpoints", "ls")) == 2
    a.run("systemctl start ckpt-dump@absent.service")  # isn't running: skipped, no failure
    assert _unit(a, "ckpt-dump@absent.service", "Result") in ("success", "exec-condition")
    a.run("systemctl enable --now ckpt-dump@web.timer ckpt-prune.timer")
    assert "ckpt-dump@web.timer" in a.text("systemctl list-timers --no-legend")
    a.run("systemctl disable --now ckpt-dump@web.timer ckpt-prune.timer; rm /etc/default/ckpt")


def test_crons_lines_do_what_the_units_do(a: Guest) -> None:
    """With cron's environment, which is nearly none."""
    bare = "env -i SHELL=/bin/sh HOME=/root PATH=/usr/bin:/bin sh -c"
    a.run(f"ckpt run -d --name web --network bridge {IDLE}")
    a.run(f"{bare} '/usr/local/bin/ckpt dump --leave-running web'")
    a.run(f"{bare} '/usr/local/bin/ckpt checkpoints prune --keep 1'")
    a.run("ckpt stop web")
    a.run(
        f"{bare} '/usr/local/bin/ckpt restore $(ls /var/lib/ckpt/checkpoints | head -n 1) --as again'"
    )
    assert states(a)["again"] == "running"


def test_uninstalling_takes_the_units_away(b: Guest) -> None:
    b.run("systemctl enable ckpt-recover.service ckpt-dump@web.timer ckpt-prune.timer")
    b.run("cd /root/ckpt && make uninstall")
    assert b.text("find /etc/systemd /usr/local/lib/systemd -name 'ckpt*'") == ""
    assert b.text("systemctl list-unit-files 'ckpt*' --no-legend || true") == ""
    b.run("cd /root/ckpt && PIP_NO_INDEX=1 PIP_FIND_LINKS=/lab/wheels make install", timeout=900)
    b.run("systemctl cat ckpt-recover.service && ckpt --version")
