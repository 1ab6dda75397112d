"""OCI bundles: a config.json is honoured or refused by name, and `ckpt spec` writes one that means the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.e2e.box import Box, until

pytestmark = needs.CONTAINERS

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def bundle(box: Box, tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle from the spec of some flags, after CHANGE."""

    def make(
        *flags: object, args: tuple[str, ...] = ("true",), change: Change | None = None
    ) -> Path:
        where = tmp_path / "bundle"
        where.mkdir()
        shutil.copytree(box.rootfs, where / "rootfs", symlinks=True)
        words = flags if "--network" in flags else ("--network", "none", *flags)
        spec = json.loads(box("spec", *words, box.rootfs, "--", *args))
        spec["root"]["path"] = "rootfs"
        if change is not None:
            change(spec)
        (where / "config.json").write_text(json.dumps(spec))
        return where

    return make


def test_what_spec_prints_runs_as_the_same_container(box: Box, bundle: Callable[..., Path]) -> None:
    flags = ["--hostname", "same", "-e", "A=b", "-u", "web", "--memory", "64m", "--read-only",
             "--tmpfs", "/scratch", "--cap-drop", "ALL", "--ulimit", "nofile=99:99",
             "--sysctl", "net.ipv4.ip_default_ttl=77"]  # fmt: skip
    script = ("id; hostname; echo $A; ulimit -n; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status;"
              "mount | cut -d' ' -f3,5 | sort; cat /proc/sys/net/ipv4/ip_default_ttl")  # fmt: skip
    direct = box.sh(script, *flags)
    where = bundle(*flags, args=("sh", "-c", script))
    assert box("run", "--rm", where) == direct


def test_the_network_of_a_bundle_is_that_of_the_flags(
    box: Box, bundle: Callable[..., Path]
) -> None:
    where = bundle("--network", "bridge,dns=192.0.2.53", args=("sleep", "1000"))
    box("run", "-d", "--name", "c", where)
    assert "192.0.2.53" in box("exec", "c", "cat", "/etc/resolv.conf")
    assert box.one("c")["network"] == "bridge" and box.one("c")["addresses"]


def test_arguments_replace_a_bundle_s_command_and_other_flags_are_refused(
    box: Box, bundle: Callable[..., Path]
) -> None:
    where = bundle(args=("false",))
    assert box("run", "--rm", where, "--", "echo", "mine") == "mine\n"
    assert "--memory" in box.fails(3, "run", "--memory", "64m", where)


def test_a_bundle_without_user_namespace_has_none(box: Box, bundle: Callable[..., Path]) -> None:
    import os

    def change(spec: dict[str, Any]) -> None:
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [one for one in spaces if one["type"] != "user"]

    where = bundle(args=("readlink", "/proc/self/ns/user"), change=change)
    assert box("run", "--rm", where).strip() == os.readlink("/proc/self/ns/user")


def test_mappings_become_a_range_of_the_container_s_own(
    box: Box, bundle: Callable[..., Path]
) -> None:
    def change(spec: dict[str, Any]) -> None:
        mapping = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
        spec["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}

    where = bundle(args=("cat", "/proc/self/uid_map"), change=change)
    first, base, size = map(int, box("run", "--rm", where).split())
    assert (first, size) == (0, 65536) and base != 100_000


@pytest.mark.parametrize(
    ("code", "field", "change"),
    [
        (13, "linux.namespaces[0].path", {"namespaces": [{"type": "network", "path": "/proc/1/ns/net"},
                                                      {"type": "pid"}, {"type": "mount"}, {"type": "uts"}]}),
        (13, "linux.cgroupsPath", {"cgroupsPath": "/somewhere"}),
        (13, "linux.uidMappings", {"uidMappings": [{"containerID": 5, "hostID": 100, "size": 10}]}),
        (13, "linux.intelRdt", {"intelRdt": {"closID": "x"}}),
        (3, "linux.sysctl", {"sysctl": []}),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_its_name(
    box: Box, bundle: Callable[..., Path], code: int, field: str, change: dict[str, Any]
) -> None:
    where = bundle(change=lambda spec: spec["linux"].update(change))
    assert field in box.fails(code, "run", where)
    assert box.names() == []


def test_a_broken_config_is_refused(box: Box, bundle: Callable[..., Path]) -> None:
    where = bundle()
    (where / "config.json").write_text('{"ociVersion": "1.0.2"')
    assert "no valid JSON" in box.fails(3, "run", where)
    (where / "config.json").write_text("[]")
    box.fails(3, "run", where)


def test_devices_of_a_bundle(box: Box, bundle: Callable[..., Path]) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["devices"] = [
            {
                "path": "/dev/mine",
                "type": "c",
                "major": 1,
                "minor": 5,
                "fileMode": 0o640,
                "uid": 33,
            },
            {"path": "/dev/queue", "type": "p", "fileMode": 0o622},
        ]

    script = "stat -c '%U %a %t:%T' /dev/mine; stat -c %F /dev/queue; head -c 2 /dev/mine | wc -c"
    where = bundle(args=("sh", "-c", script), change=change)
    assert box("run", "--rm", where).splitlines() == ["web 640 1:5", "fifo", "2"]


def hooks(tmp_path: Path, **failing: int) -> Change:
    """Every kind of hook notes its kind, the state that it gets and its mount namespace."""
    program = tmp_path / "hook.sh"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$1 $FLAVOUR $(cat) $(readlink /proc/self/ns/mnt)" >> {tmp_path}/notes\n'
        "echo noise; echo the reason >&2; exit $2\n"
    )
    program.chmod(0o755)
    (tmp_path / "notes").touch(mode=0o666)
    (tmp_path / "notes").chmod(0o666)

    def change(spec: dict[str, Any]) -> None:
        spec["hooks"] = {
            kind: [{"path": str(program), "args": ["hook", kind, str(failing.get(kind, 0))],
                    "env": ["FLAVOUR=sweet", "PATH=/usr/bin:/bin"], "timeout": 60}]
            for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        }  # fmt: skip

    return change


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A directory that the container's ids may walk through."""
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest-of-" in str(folder):
            folder.chmod(0o755)
    return tmp_path


def notes(tmp_path: Path) -> list[tuple[str, dict[str, Any], str]]:
    found = []
    for line in (tmp_path / "notes").read_text().splitlines():
        kind, flavour, rest = line.split(" ", 2)
        state, namespace = rest.rsplit(" ", 1)
        assert flavour == "sweet"
        found.append((kind, json.loads(state), namespace))
    return found


def test_hooks_run_once_in_order_with_the_state_and_in_the_right_namespaces(
    box: Box, bundle: Callable[..., Path], open_path: Path
) -> None:
    import os

    where = bundle(args=("sleep", "1000"), change=hooks(open_path))
    box("create", "--name", "c", where)
    identity = box.inspect("c")["id"]
    pid = box.one("c")["pid"]
    box("start", "c")
    box("stop", "-t", "0", "c")
    box("rm", "c")
    found = notes(open_path)
    assert [(kind, state["status"], state["pid"]) for kind, state, _ in found] == [
        ("prestart", "creating", pid),
        ("createRuntime", "creating", pid),
        ("createContainer", "creating", 1),
        ("poststart", "running", pid),
        ("poststop", "stopped", 0),
    ]
    assert all(state["id"] == identity and state["ociVersion"] for _, state, _ in found)
    ours = os.readlink("/proc/self/ns/mnt")
    assert [namespace == ours for _, _, namespace in found] == [True, True, False, True, True]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_before_the_start_ends_it_all(
    box: Box, bundle: Callable[..., Path], open_path: Path, kind: str
) -> None:
    where = bundle(args=("sleep", "1000"), change=hooks(open_path, **{kind: 7}))
    done = box.call("run", "-d", "--name", "c", where)
    assert done.returncode in (1, 12) and "failed with status 7: the reason" in done.stderr
    assert box.names() == []
    assert [note[0] for note in notes(open_path)][-1] == "poststop"


def test_a_failing_poststart_or_poststop_hook_changes_nothing(
    box: Box, bundle: Callable[..., Path], open_path: Path
) -> None:
    where = bundle(args=("sleep", "1000"), change=hooks(open_path, poststart=1, poststop=1))
    box("run", "-d", "--name", "c", where)
    assert box.one("c")["state"] == "running"
    box("rm", "-f", "c")
    assert [note[0] for note in notes(open_path)][-2:] == ["poststart", "poststop"]


def test_poststop_hooks_run_when_a_container_ends_by_itself(
    box: Box, bundle: Callable[..., Path], open_path: Path
) -> None:
    where = bundle(args=("true",), change=hooks(open_path))
    box("run", "-d", "--name", "c", where)
    until(lambda: [note[0] for note in notes(open_path)].count("poststop") == 1)


@needs.criu
@pytest.mark.parametrize("network", ["none", "host"])
def test_a_restore_begins_a_life_with_its_hooks(
    box: Box, bundle: Callable[..., Path], open_path: Path, network: str
) -> None:
    where = bundle("--network", network, args=("sleep", "1000"), change=hooks(open_path))
    box("run", "-d", "--name", "c", where)
    box("dump", "c", "--as", "one")
    box("rm", "c")
    before = len(notes(open_path))
    assert notes(open_path)[-1][0] == "poststop"
    box("restore", "one")
    pid = box.one("c")["pid"]
    assert [(kind, state["pid"]) for kind, state, _ in notes(open_path)[before:]] == [
        ("prestart", pid),
        ("createRuntime", pid),
        ("poststart", pid),
    ]
    box("rm", "-f", "c")
    assert notes(open_path)[-1][0] == "poststop"


def test_a_start_hook_runs_inside(box: Box, bundle: Callable[..., Path]) -> None:
    def change(spec: dict[str, Any]) -> None:
        hook = {"path": "/bin/sh", "args": ["sh", "-c", "cat > /var/state"]}
        spec["hooks"] = {"startContainer": [hook]}

    where = bundle(args=("cat", "/var/state"), change=change)
    state = json.loads(box("run", "--rm", where))
    assert state["status"] == "created" and state["pid"] == 1
