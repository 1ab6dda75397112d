"""What a spec asks for is honoured, or refused by its JSON path; nothing is ignored."""

from __future__ import annotations

import copy
import json

import pytest

from runtime.errors import BadInput, NotFound, RuntimeFault, Unsupported
from runtime.spec import Options, Spec, from_flags, load_bundle, validate

FULL = {
    "ociVersion": "1.2.0",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1000, "gid": 100, "umask": 18, "additionalGids": [5, 6]},
        "args": ["sh", "-c", ""],
        "env": ["PATH=/bin", "EMPTY="],
        "cwd": "/work",
        "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": [], "effective": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "noNewPrivileges": True,
        "apparmorProfile": "",
        "oomScoreAdj": 100,
        "selinuxLabel": "",
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "domainname": "example",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/tmp",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "size=1m", "mode=1777"],
        },
        {
            "destination": "/data",
            "type": "none",
            "source": "/srv",
            "options": ["rbind", "ro", "rslave", "idmap"],
        },
    ],
    "hooks": {
        kind: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]
        for kind in (
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        )
    },
    "annotations": {"anything": "goes", "com.example/x": ""},
    "linux": {
        "namespaces": [
            {"type": "pid"},
            {"type": "mount"},
            {"type": "uts"},
            {"type": "ipc"},
            {"type": "user"},
            {"type": "cgroup"},
            {"type": "network", "path": "/run/netns/x"},
        ],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "cgroupsPath": "/a/b",
        "resources": {"memory": {"limit": 1 << 28}, "pids": {"limit": 100}},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        "sysctl": {"net.core.somaxconn": "256"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "rootfsPropagation": "rprivate",
        "mountLabel": "",
    },
}


def edited(path: str, value):
    """FULL with one field replaced; path as "linux.namespaces.0.type"."""
    spec = copy.deepcopy(FULL)
    where = spec
    *parents, last = path.split(".")
    for key in parents:
        where = where[int(key)] if isinstance(where, list) else where.setdefault(key, {})
    if isinstance(where, list):
        where[int(last)] = value
    else:
        where[last] = value
    return spec


def test_a_spec_with_everything_is_valid():
    assert validate(FULL) == []


def test_typed_access():
    spec = Spec(FULL)
    spec.require_supported()
    process = spec.process
    assert (process.uid, process.gid, process.additional_gids) == (1000, 100, (5, 6))
    assert (process.args, process.cwd, process.umask) == (("sh", "-c", ""), "/work", 0o22)
    assert process.console_size == (24, 80)
    assert spec.hooks["poststop"][0]["path"] == "/bin/true"
    assert spec.namespace("network").path == "/run/netns/x"
    assert spec.uid_mappings[0].host == 100000
    assert (spec.root_readonly, spec.hostname, spec.domainname) == (True, "box", "example")


def test_mounts_become_flags_and_data():
    proc, tmp, data = Spec(FULL).mounts
    assert (proc.type, proc.flags, proc.data) == ("proc", 0, "")
    assert (tmp.flags, tmp.data) == (2, "size=1m,mode=1777")
    assert data.type == "bind"
    assert data.flags == 0x1000 | 0x4000 | 1
    assert data.propagation == 0x80000 | 0x4000
    assert data.idmap == "idmap"


@pytest.mark.parametrize(
    ("path", "value", "unsupported"),
    [
        ("ociVersion", "2.0.0", True),
        ("ociVersion", "1.0", True),
        ("ociVersion", 1, False),
        ("surprise", 1, True),
        ("windows", {"x": 1}, True),
        ("vm", {"x": 1}, True),
        ("process.args", [], False),
        ("process.args", "sh", False),
        ("process.args", ["a\0b"], False),
        ("process.args", None, False),
        ("process.cwd", "relative", False),
        ("process.env", ["NOVALUE"], False),
        ("process.env", ["=x"], False),
        ("process.user.uid", -1, False),
        ("process.user.uid", True, False),
        ("process.user.uid", 2**32 - 1, False),
        ("process.user.umask", 0o1000, False),
        ("process.user.surprise", 1, True),
        ("process.apparmorProfile", "x", True),
        ("process.selinuxLabel", "x", True),
        ("process.scheduler", {"policy": "SCHED_FIFO"}, True),
        ("process.oomScoreAdj", 1001, False),
        ("process.capabilities", {"bounding": ["CAP_MAGIC"]}, False),
        ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], False),
        ("root", None, False),
        ("root.path", "", False),
        ("hostname", "bad name", False),
        ("mounts.0.destination", "proc", False),
        ("mounts.0.destination", "/a/../../etc", False),
        ("mounts.0.type", "nfs", True),
        ("mounts.0.type", "overlay", True),
        ("mounts.1.options", ["size=1m", "sise=2m"], True),
        ("mounts.1.options", ["rnosuid"], True),
        ("mounts.2.source", "relative", False),
        ("mounts.2.options", ["bind", "noatime"], True),
        ("mounts.2.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], True),
        ("hooks.prestart", [{"path": "true"}], False),
        ("hooks.surprise", [], True),
        ("hooks.poststop", [{"path": "/x", "timeout": 0}], False),
        ("annotations.x", 5, False),
        ("linux.intelRdt", {"closID": "x"}, True),
        ("linux.personality", {"domain": "LINUX32"}, True),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}, True),
        ("linux.mountLabel", "x", True),
        ("linux.surprise", {}, True),
        ("linux.namespaces.0.type", "time", True),
        ("linux.namespaces.0.type", "magic", False),
        ("linux.namespaces.0.path", "/proc/1/ns/pid", True),
        ("linux.namespaces.1.type", "pid", False),
        ("linux.uidMappings.0.size", 0, False),
        ("linux.uidMappings.0.hostID", 2**32 - 100, False),
        ("linux.devices.0.major", None, False),
        ("linux.devices.0.path", "/dev/../etc/x", False),
        ("linux.cgroupsPath", "/../other", False),
        ("linux.resources", {"memory": {"limit": "1g"}}, False),
        ("linux.resources", {"memory": {"kernel": 5}}, True),
        ("linux.sysctl", {"kernel.panic": "1"}, True),
        ("linux.maskedPaths", ["relative"], False),
        ("linux.rootfsPropagation", "shared", True),
    ],
)
def test_what_can_t_be_honoured_is_refused_by_its_path(path, value, unsupported):
    problems = validate(edited(path, value))
    assert problems, "nothing was found"
    said = str(problems[0])
    plain = "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in path.split(".")).lstrip(".")
    assert said.startswith(plain) or plain.startswith(problems[0].path.split(":")[0])
    assert problems[0].unsupported is unsupported
    with pytest.raises(Unsupported if unsupported else BadInput) as caught:
        Spec(edited(path, value)).require_supported()
    assert "\n" not in str(caught.value)


def test_every_problem_is_listed():
    spec = edited("process.cwd", "x")
    spec["root"]["path"] = 5
    spec["mounts"][1]["options"].append("bogus")
    assert {p.path for p in validate(spec)} == {"process.cwd", "root.path", "mounts[1].options"}


def test_namespaces_that_other_fields_need():
    spec = copy.deepcopy(FULL)
    spec["linux"]["namespaces"] = [{"type": "pid"}, {"type": "mount"}]
    paths = {problem.path for problem in validate(spec)}
    assert {"hostname", "domainname", "linux.uidMappings", "linux.gidMappings"} <= paths
    assert any(path.startswith("linux.sysctl") for path in paths)
    spec["linux"] = {"namespaces": []}
    assert any("no pid namespace" in str(problem) for problem in validate(spec))


@pytest.mark.parametrize("spec", [None, [], "x", 5, {}, {"process": 5}, {"linux": []}])
def test_nonsense_is_a_problem_not_a_crash(spec):
    assert validate(spec)


def test_a_bundle(tmp_path):
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    spec = load_bundle(str(tmp_path))
    assert spec.root_path == str(tmp_path / "rootfs")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": NaN}', "no valid JSON"),
        (b"[" * 100_000, "nested too deep|no valid JSON"),
        (b"{}", "ociVersion: is missing .*more problem"),
        (b" " * (17 << 20), "larger than"),
    ],
)
def test_a_broken_config_is_one_clear_error(tmp_path, content, why):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RuntimeFault, match=why) as caught:
        load_bundle(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_directory_that_is_no_bundle(tmp_path):
    with pytest.raises(NotFound, match=r"config\.json"):
        load_bundle(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    with pytest.raises(NotFound, match=r"root\.path"):
        load_bundle(str(tmp_path))


def test_what_flags_mean_is_valid_by_default():
    spec = from_flags(Options(args=("true",)))
    assert validate(spec) == []
    assert json.loads(json.dumps(spec)) == spec
