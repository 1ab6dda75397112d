"""What a container's first process is: its user, limits, capabilities, filter, environment and namespaces."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box

pytestmark = needs.CONTAINERS

KINDS = ("user", "pid", "mnt", "uts", "ipc", "net", "cgroup")


def status_of(box: Box, *flags: object, args: str = "") -> dict[str, str]:
    lines = box.sh(f"{args} cat /proc/self/status", *flags).splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def test_every_namespace_is_its_own_and_root_is_somebody_else_outside(box: Box) -> None:
    script = ";".join(f"readlink /proc/self/ns/{kind}" for kind in KINDS)
    inside = box.sh(f"{script}; cat /proc/self/uid_map; echo $$").split()
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS]
    assert not set(ours) & set(inside)
    first, base, size = map(int, inside[7:10])
    assert (first, size) == (0, 65536) and base > 1 << 30
    assert int(inside[10]) < 10  # a pid of its own


def test_each_container_has_ids_of_its_own(box: Box) -> None:
    box.up("a")
    box.up("b")
    bases = [box.inspect(name)["record"]["id_base"] for name in ("a", "b")]
    assert abs(bases[0] - bases[1]) >= 65536


def test_user_namespace_can_be_the_host_s(box: Box) -> None:
    said = box.sh("readlink /proc/self/ns/user; id -u; touch /f; ls -ln /f", "--userns", "host")
    lines = said.splitlines()
    assert lines[0] == os.readlink("/proc/self/ns/user") and lines[1] == "0"
    done = box.call(
        "-v",
        "run",
        "--rm",
        "--userns",
        "host",
        "--network",
        "none",
        "--cap-add",
        "ALL",
        box.rootfs,
        "--",
        "true",
    )
    if not os.geteuid() and _lacks("CapPrm", 24):  # CAP_SYS_RESOURCE
        assert "CAP_SYS_RESOURCE" in done.stderr


def _lacks(field: str, number: int) -> bool:
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return not int(line.split()[1], 16) >> number & 1


def test_root_has_the_usual_capabilities_and_no_more(box: Box) -> None:
    found = status_of(box)
    assert found["NoNewPrivs"] == "1" and found["Seccomp"] == "2"
    effective = int(found["CapEff"], 16)
    assert effective == int(found["CapBnd"], 16)
    assert effective & 1 and not effective >> 21 & 1  # CAP_CHOWN, but not CAP_SYS_ADMIN
    assert int(found["CapInh"], 16) == 0


def test_a_user_who_is_not_root_has_none_in_force(box: Box) -> None:
    found = status_of(box, "-u", "web")
    assert int(found["CapEff"], 16) == 0 == int(found["CapPrm"], 16)
    assert found["Uid"].split() == ["33"] * 4 and found["Gid"].split() == ["33"] * 4
    assert found["Groups"].split() == ["44", "45"]


def test_capabilities_are_added_and_dropped(box: Box) -> None:
    found = status_of(box, "--cap-drop", "ALL", "--cap-add", "net_admin")
    assert int(found["CapEff"], 16) == 1 << 12
    every = int(status_of(box, "--cap-add", "ALL")["CapEff"], 16)
    assert every >> 21 & 1 and every >> 24 & 1  # in its own user namespace also what we lack


def test_the_filter_can_be_left_out_or_be_one_s_own(box: Box, tmp_path: Path) -> None:
    assert status_of(box, "--security-opt", "seccomp=unconfined")["Seccomp"] == "0"
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    said = box.sh("mkdir /tmp/x 2>&1 || true", "--security-opt", f"seccomp={path}")
    assert "Operation not supported" in said


def test_the_default_filter_forbids_what_reaches_beyond(box: Box) -> None:
    said = box.sh("unshare -U true 2>&1 || echo refused; mount -t tmpfs x /mnt 2>&1 || echo no")
    assert "refused" in said and "no" in said.splitlines()


def test_limits_umask_score_and_directory(box: Box) -> None:
    said = box.sh(
        "ulimit -n; ulimit -Hn; umask; pwd; cat /proc/self/oom_score_adj",
        "--ulimit", "nofile=123:456", "-w", "/var/new/place",
    )  # fmt: skip
    assert said.split() == ["123", "456", "0022", "/var/new/place", "0"]


def test_environment_and_host_name(box: Box) -> None:
    said = box.sh(
        "env; hostname; cat /etc/hostname; grep box /etc/hosts",
        "-e", "A=1 2", "-e", "PATH=/bin", "--hostname", "box", "-u", "web",
    )  # fmt: skip
    lines = said.splitlines()
    assert "A=1 2" in lines and "PATH=/bin" in lines and "HOME=/home/web" in lines
    assert lines[-3:-1] == ["box", "box"] and lines[-1].endswith("box")


def test_pid_1_is_the_init_and_only_our_streams_are_open(box: Box) -> None:
    said = box.sh("cat /proc/1/cmdline | tr '\\0' ' '; echo; ls /proc/self/fd; ls -l /proc/1/fd")
    lines = said.splitlines()
    assert lines[0].startswith("/.ckpt/init sh -c")
    assert lines[1:5] == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
    assert not [line for line in lines[5:] if "socket" in line]


def test_kernel_settings_of_its_own_namespaces(box: Box) -> None:
    values = {
        "kernel.shmmax": "67108864",
        "kernel.msgmax": "16384",
        "kernel.sem": "250 32000 100 256",
        "fs.mqueue.msg_max": "20",
    }
    flags = [word for key, value in values.items() for word in ("--sysctl", f"{key}={value}")]
    files = " ".join("/proc/sys/" + key.replace(".", "/") for key in values)
    said = box.sh(f"cat {files}", *flags)
    assert [" ".join(line.split()) for line in said.splitlines()] == list(values.values())


def test_network_settings_of_its_own_namespace(box: Box) -> None:
    flags = ["--sysctl", "net.ipv4.ip_default_ttl=77"]
    assert box.sh("cat /proc/sys/net/ipv4/ip_default_ttl", *flags) == "77\n"
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() != "77\n"


def test_a_setting_with_a_value_that_the_kernel_refuses_names_it(box: Box) -> None:
    said = box.fails(
        12,
        "run",
        "--network",
        "none",
        "--sysctl",
        "kernel.shmmni=nonsense",
        box.rootfs,
        "--",
        "true",
    )
    assert "kernel/shmmni" in said and box.names() == []


def test_masked_and_read_only_places(box: Box) -> None:
    said = box.sh(
        "cat /proc/keys | wc -c; ls /proc/acpi 2>/dev/null | wc -l; ls /sys/firmware | wc -l;"
        "echo x 2>/dev/null > /proc/sys/kernel/hostname || echo ro;"
        "touch /sys/fs/cgroup/x 2>/dev/null || echo ro"
    )
    assert said.split() == ["0", "0", "0", "ro", "ro"]


@pytest.mark.parametrize("size", [(30, 90)])
def test_a_terminal_for_the_first_process(box: Box, size: tuple[int, int]) -> None:
    from tests.e2e.terminal import at_terminal

    words = ["run", "-it", "--rm", "--network", "none", box.rootfs, "--", "sh"]
    with at_terminal(box, *words, rows=size[0], columns=size[1]) as person:
        person.sees("\x1b[6n")
        person.type("stty size; tty; echo $TERM; exit 9\n")
        assert person.ends() == 9
        assert "30 90" in person.seen and "/dev/pts/0" in person.seen and "xterm" in person.seen
