"""The doctor's parts that need no root: rows, judgement, what other hosts may send."""

from __future__ import annotations

import os
import platform
import socket
import struct
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt.ops.doctor import cgroups, cures, healthy, kernel, login
from ckpt.ops.doctor.remote import _cure
from ckpt.ops.doctor.row import Row, asked, in_child, row_from
from ckpt.ops.host import Host
from runtime.cgroups import Layout, Tree
from runtime.cgroups.fake import FakeV2
from runtime.errors import RuntimeFault
from runtime.paths import HostPaths


def test_warnings_leave_a_host_healthy_and_one_bad_row_does_not():
    assert healthy([Row("a", "x"), Row("b", "x", "warn")])
    assert not healthy([Row("a", "x"), Row("b", "x", "bad"), Row("c", "x")])


def test_a_row_survives_the_way_to_another_host():
    row = Row("CRIU", "3.17", "bad", "nothing works", "upgrade", "criu")
    assert row_from(row.to_dict()) == row


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {**Row("a", "b").to_dict(), "level": "fine"},
        {**Row("a", "b").to_dict(), "value": 1},
        {**Row("a", "b").to_dict(), "value": "x" * 5000},
        {**Row("a", "b").to_dict(), "more": "x"},
    ],
)
def test_what_is_no_row_is_refused(raw):
    with pytest.raises(ValueError):
        row_from(raw)


def test_another_host_cannot_send_escape_sequences_to_the_terminal():
    raw = {**Row("a", "b").to_dict(), "value": "\x1b]0;owned\x07\nfine"}
    assert row_from(raw).value == "]0;ownedfine"
    assert _cure({"repair": "r", "did": "\x1b[2Jx", "worked": True})["did"] == "[2Jx"


@pytest.mark.parametrize("raw", [None, {}, {"worked": "yes"}, {"did": "x"}])
def test_what_is_no_cure_is_refused(raw):
    with pytest.raises(ValueError):
        _cure(raw)


def test_a_probe_that_fails_is_a_row_and_not_the_end():
    def broken() -> Row:
        raise FileNotFoundError(2, "No such file or directory", "/proc/x")

    row = asked("thing", broken)
    assert (row.name, row.level) == ("thing", "warn")
    assert "/proc/x" in row.consequence


def test_a_childs_failure_comes_back_as_its_reason():
    def fail() -> None:
        raise PermissionError(1, "Operation not permitted", "unshare")

    assert in_child(lambda: None) == ""
    assert in_child(fail) == "unshare: Operation not permitted"


def test_a_child_that_is_killed_has_not_succeeded():
    assert "status 9" in in_child(lambda: os.kill(os.getpid(), 9))


@pytest.mark.parametrize(
    ("release", "machine", "level"),
    [
        ("6.12.1-amd64", "x86_64", "ok"),
        ("6.1.0-13-arm64", "aarch64", "ok"),
        ("5.15.0", "x86_64", "warn"),
        ("5.4.0-42-generic", "x86_64", "bad"),
        ("6.12.1", "riscv64", "warn"),
    ],
)
def test_kernels_are_judged_by_release_and_processor(monkeypatch, release, machine, level):
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    row = kernel.kernel()
    assert row.level == level
    assert (level == "ok") == (not row.fix)


@pytest.mark.parametrize(
    ("absent", "level"), [((), "ok"), ((24,), "warn"), ((21,), "bad"), ((21, 24), "bad")]
)
def test_a_missing_capability_weighs_as_much_as_what_it_is_needed_for(monkeypatch, absent, level):
    mask = (1 << 41) - 1
    for bit in absent:
        mask &= ~(1 << bit)
    monkeypatch.setattr(kernel, "_capability_mask", lambda: mask)
    row = kernel.capabilities()
    assert row.level == level
    assert ("CAP_SYS_RESOURCE" in row.value) == (24 in absent)


@pytest.mark.parametrize(
    ("size", "capable", "level"),
    [(1 << 20, False, "warn"), (16 << 20, False, "ok"), (1 << 20, True, "ok")],
)
def test_small_pipes_matter_only_without_the_capability_to_exceed(
    monkeypatch, size, capable, level
):
    monkeypatch.setattr(kernel, "sysctl", lambda name: str(size))
    monkeypatch.setattr(kernel, "_capability_mask", lambda: capable << 24)
    row = kernel.pipe_size()
    assert row.level == level
    assert row.repair == ("" if level == "ok" else "pipe-size")


def test_each_named_repair_of_the_kernel_is_one_that_fix_knows(monkeypatch):
    monkeypatch.setattr(kernel, "sysctl", lambda name: "65536")
    monkeypatch.setattr(kernel, "_capability_mask", lambda: 0)
    assert kernel.pipe_size().repair in cures._CURES


def test_fix_makes_the_directories_and_says_so(tmp_path):
    host = Host(HostPaths(tmp_path / "root", tmp_path / "root/run"))
    done = cures.cure(host, [Row("directories", "", repair="directories")] * 2)
    assert [(d.repair, d.worked) for d in done] == [("directories", True)]
    assert (tmp_path / "root/containers").is_dir()


def test_a_cure_that_fails_is_told_and_stops_no_other(tmp_path, monkeypatch):
    def fail(host: Host) -> str:
        raise RuntimeFault(doing="installing", target="criu", why="no network")

    monkeypatch.setitem(cures._CURES, "criu", fail)
    host = Host(HostPaths(tmp_path / "root", tmp_path / "root/run"))
    rows = [Row("CRIU", "", "bad", repair="criu"), Row("d", "", repair="directories")]
    first, second = cures.cure(host, rows)
    assert not first.worked and "no network" in first.did
    assert second.worked


def test_only_what_a_row_asks_for_is_repaired(tmp_path):
    host = Host(HostPaths(tmp_path / "root", tmp_path / "root/run"))
    assert cures.cure(host, [Row("a", "b", "bad", "c", "rm -rf /", "rm -rf /")]) == []
    assert not (tmp_path / "root").exists()


@contextmanager
def ssh_agent(path: Path, answer: bytes):
    """An agent that gives ANSWER to whoever asks, once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(64)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (struct.pack(">IBI", 5, 12, 0), 0),
        (struct.pack(">IBI", 60, 12, 2) + b"keys", 2),
        (struct.pack(">IB", 1, 5), None),
        (b"", None),
    ],
)
def test_an_agents_keys_are_counted_and_nonsense_is_no_key(tmp_path, monkeypatch, answer, held):
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with ssh_agent(tmp_path / "agent", answer):
        assert login._agent_keys() == held


def test_known_hosts_counts_keys_not_comments(tmp_path, monkeypatch):
    file = tmp_path / "known"
    file.write_text("# comment\n\na ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n")
    monkeypatch.setenv("CKPT_KNOWN_HOSTS", str(file))
    host = Host(HostPaths(tmp_path / "root", tmp_path / "run"))
    assert login.known_hosts(host).value == "2 keys"
    file.write_text("# nothing\n")
    assert login.known_hosts(host).level == "warn"
    host.paths.root.mkdir()
    (host.paths.root / "known_hosts").write_text("c ssh-ed25519 CCCC\n")
    assert login.known_hosts(host).value == "1 keys", "those that ckpt host add has accepted"


def v2_layout(folder: Path, *controllers: str) -> Layout:
    tree = Tree(2, str(folder), frozenset(controllers))
    return Layout("v2", (tree,), fs=FakeV2(str(folder), controllers))


def test_a_pure_v2_host_is_well_and_no_probe_group_stays(tmp_path):
    layout = v2_layout(tmp_path, "cpu", "cpuset", "io", "memory", "pids")
    rows = [probe(layout) for probe in (cgroups.layout_of, cgroups.controllers, cgroups.freezer)]
    assert [row.level for row in rows] == ["ok", "ok", "ok"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_missing_controller_is_named_with_what_it_costs(tmp_path):
    row = cgroups.controllers(v2_layout(tmp_path, "cpu", "cpuset", "io", "pids"))
    assert row.level == "warn"
    assert "memory" in row.value and "OOM" in row.consequence


def test_without_any_tree_nothing_can_run():
    layout = Layout("none", ())
    probes = (cgroups.layout_of, cgroups.freezer, cgroups.controllers)
    assert {probe(layout).level for probe in probes} == {"bad"}
