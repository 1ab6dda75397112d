"""Flags produce a spec: defaults of a production engine, and exactly what was asked for."""

from __future__ import annotations

import json
import os

import pytest

from runtime.errors import BadInput, RuntimeFault
from runtime.spec import DeviceRate, Options, Spec, from_flags, resolve

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
nonsense
bad:x:notanumber:0::/:/bin/sh
web:x:33:34:web:/var/www:/bin/false
huge:x:99999999999:0::/:/bin/sh
"""
GROUP = "root:x:0:\nweb:x:34:\nlogs:x:90:root,web\nssl:x:80:web\n"


@pytest.fixture
def rootfs(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


def make(**options):
    return from_flags(Options(args=("true",), **options))


@pytest.mark.parametrize(
    ("text", "uid", "gid", "more", "home"),
    [
        ("", 0, 0, (90,), "/root"),
        ("0", 0, 0, (90,), "/root"),
        ("web", 33, 34, (80, 90), "/var/www"),
        ("33", 33, 34, (80, 90), "/var/www"),
        ("web:logs", 33, 90, (), "/var/www"),
        ("web:7", 33, 7, (), "/var/www"),
        ("1000", 1000, 0, (), "/"),
        ("1000:100", 1000, 100, (), "/"),
    ],
)
def test_users(rootfs, text, uid, gid, more, home):
    user = resolve(text, str(rootfs))
    assert (user.uid, user.gid, user.additional_gids, user.home) == (uid, gid, more, home)


@pytest.mark.parametrize(
    "text", ["nobody", "bad", "huge", "web:none", ":5", "web:", "-1", "4294967295", "1 2", "٣"]
)
def test_users_that_aren_t_there(rootfs, text):
    with pytest.raises(BadInput):
        resolve(text, str(rootfs))


def test_numbers_need_no_root_file_system(tmp_path):
    assert resolve("5:6", "").gid == 6
    assert resolve("5", str(tmp_path)).home == "/"


def test_passwd_is_never_read_from_outside(tmp_path, rootfs):
    outside = tmp_path / "outside"
    outside.mkdir()
    inner = tmp_path / "inner"
    (inner / "etc").mkdir(parents=True)
    (outside / "passwd").write_text("evil:x:1:1::/:\n")
    for target in (str(outside / "passwd"), "../../outside/passwd", "/etc/passwd"):
        (inner / "etc/passwd").unlink(missing_ok=True)
        (inner / "etc/passwd").symlink_to(target)
        with pytest.raises(RuntimeFault):
            resolve("evil", str(inner))
    (inner / "etc/passwd").unlink()
    (inner / "real").write_text("good:x:7:8::/:\n")
    (inner / "etc/passwd").symlink_to("/real")
    assert resolve("good", str(inner)).uid == 7


def test_a_passwd_that_is_a_fifo_doesn_t_hang(rootfs):
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    with pytest.raises(BadInput, match="no regular file"):
        resolve("web", str(rootfs))


def test_defaults():
    data = make()
    spec = Spec(data)
    assert {n.type for n in spec.namespaces} == {
        "pid", "mount", "ipc", "uts", "cgroup", "network", "user"
    }  # fmt: skip
    assert [m.destination for m in spec.mounts] == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"
    ]  # fmt: skip
    assert all(m.flags & 1 for m in spec.mounts if m.destination.startswith("/sys"))
    assert spec.process.no_new_privileges
    assert "CAP_SYS_ADMIN" not in spec.process.capabilities["bounding"]
    assert "/proc/kcore" in spec.masked_paths
    assert spec.seccomp["syscalls"]
    assert data["annotations"] == {"org.ckpt.restart": "no"}


def test_environment(rootfs):
    data = make(
        rootfs=str(rootfs), user="web", hostname="box", tty=True, env=("A=1=2", "PATH=/x", "E=")
    )
    env = dict(entry.split("=", 1) for entry in data["process"]["env"])
    assert env["HOME"] == "/var/www"
    assert (env["HOSTNAME"], env["TERM"], env["PATH"]) == ("box", "xterm", "/x")
    assert (env["A"], env["E"]) == ("1=2", "")
    assert data["process"]["user"] == {"uid": 33, "gid": 34, "additionalGids": [80, 90]}


def test_capabilities_of_root_and_of_others():
    assert "CAP_NET_RAW" not in make(cap_drop=("NET_RAW",))["process"]["capabilities"]["bounding"]
    added = make(cap_drop=("ALL",), cap_add=("NET_ADMIN",))["process"]["capabilities"]
    assert added["effective"] == ["CAP_NET_ADMIN"]
    assert set(make(user="5")["process"]["capabilities"]) == {"bounding"}


def test_limits():
    data = make(
        memory=1 << 28,
        memory_swap=1 << 29,
        cpus=1.5,
        cpu_burst=50_000,
        cpu_shares=512,
        cpuset_cpus="0",
        pids=100,
        io_weight=200,
        io_read_bps=(DeviceRate(8, 0, 1000),),
        rlimits=("nofile=100:200",),
        sysctl={"net.core.somaxconn": "100"},
    )
    resources = data["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 28, "swap": 1 << 29}
    assert resources["cpu"] == {
        "shares": 512, "burst": 50_000, "cpus": "0", "quota": 150_000, "period": 100_000
    }  # fmt: skip
    assert resources["pids"] == {"limit": 100}
    assert resources["blockIO"]["throttleReadBpsDevice"][0]["rate"] == 1000
    assert data["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]


def test_tmpfs_and_volumes():
    spec = Spec(
        make(
            tmpfs=("/tmp", "/run:size=64m,mode=755"),
            volumes=("/srv/a:/data/a:ro", "/srv:/data", "/x:/dev/shm"),
        )
    )
    mounts = {mount.destination: mount for mount in spec.mounts}
    assert mounts["/tmp"].data == "mode=1777"
    assert mounts["/run"].data == "size=64m,mode=755"
    assert mounts["/data/a"].flags & 1
    assert not mounts["/data"].flags & 1
    assert mounts["/dev/shm"].type == "bind"
    order = [mount.destination for mount in spec.mounts]
    assert order.index("/data") < order.index("/data/a")


def test_network_kinds():
    data = make(network={"kind": "bridge", "publish": [[80, 80]]})
    assert json.loads(data["annotations"]["org.ckpt.network"])["kind"] == "bridge"
    host = Spec(make(network={"kind": "host"}))
    assert host.namespace("network") is None
    assert "/sys" not in [mount.destination for mount in host.mounts]
    plain = Spec(make(network={"kind": "host"}, user_namespace=False))
    assert "/sys" in [mount.destination for mount in plain.mounts]


def test_seccomp_can_be_declined_or_given():
    assert Spec(make(seccomp="unconfined")).seccomp == {}
    given = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert Spec(make(seccomp=given)).seccomp == given


@pytest.mark.parametrize(
    "options",
    [
        {"args": ()},
        {"env": ("NOVALUE",)},
        {"env": ("A=\0",)},
        {"cwd": "relative"},
        {"hostname": "a b"},
        {"hostname": "x" * 65},
        {"tmpfs": ("relative",)},
        {"tmpfs": ("/x:sise=5",)},
        {"tmpfs": ("/",)},
        {"tmpfs": ("/a/../../b",)},
        {"volumes": ("/a",)},
        {"volumes": ("a:/b",)},
        {"volumes": ("/a:b",)},
        {"volumes": ("/a:/b:rx",)},
        {"volumes": ("/a:/b", "/c:/b/")},
        {"volumes": ("/a:/tmp",), "tmpfs": ("/tmp",)},
        {"cpus": 0},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"memory": -5},
        {"memory_swap": 1 << 29},
        {"cpu_burst": 10},
        {"pids": -7},
        {"cpuset_cpus": "a-b"},
        {"cap_add": ("MAGIC",)},
        {"rlimits": ("nofile",)},
        {"sysctl": {"kernel.panic": "1"}},
        {"sysctl": {"net.core.somaxconn": "1"}, "network": {"kind": "host"}},
        {"restart": "sometimes"},
        {"restart": "on-failure:0"},
        {"user": "name-without-rootfs"},
        {"umask": 0o7777},
        {"oom_score_adj": 5000},
    ],
)
def test_a_flag_that_makes_no_sense_is_one_clear_error(options):
    with pytest.raises(RuntimeFault) as caught:
        from_flags(Options(**{"args": ("true",), **options}))
    assert "\n" not in str(caught.value)
