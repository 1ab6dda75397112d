"""Which trees are found, and which of them are used, from what the kernel says of its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups.layout import Layout, detect

V2 = "25 20 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def found(tmp_path: Path, mountinfo: str, controllers: str = "", comm: str = "init") -> Layout:
    """Detect in a made-up /: each mount point is there, as a directory with cgroup.procs."""
    for line in mountinfo.splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        place = tmp_path / fields[4].replace("\\040", " ").lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        if kind != "tmpfs":
            (place / "cgroup.procs").touch()
        if kind == "cgroup2":
            (place / "cgroup.controllers").write_text(controllers + "\n")
    (tmp_path / "mountinfo").write_text(mountinfo)
    (tmp_path / "comm").write_text(f"{comm}\n")
    return detect(
        mountinfo=str(tmp_path / "mountinfo"),
        pid1_comm=str(tmp_path / "comm"),
        prefix=str(tmp_path),
    )


def test_pure_v2(tmp_path: Path) -> None:
    layout = found(tmp_path, V2, "cpuset cpu io memory hugetlb pids rdma misc")
    assert layout.kind == "v2"
    assert layout.controllers == {"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}
    assert layout.tree_of("blkio") == layout.unified


def test_hybrid_leaves_foreign_trees_alone(tmp_path: Path) -> None:
    layout = found(tmp_path, HYBRID, "hugetlb")
    assert layout.kind == "hybrid"
    names = {tree.mount.rpartition("/")[2] for tree in layout.usable}
    assert names == {"cpu,cpuacct", "memory", "unified"}


def test_each_controller_is_in_one_tree(tmp_path: Path) -> None:
    layout = found(tmp_path, HYBRID, "hugetlb")
    cpu, accounting, huge = (layout.tree_of(c) for c in ("cpu", "cpuacct", "hugetlb"))
    assert cpu is not None and huge is not None
    assert cpu == accounting
    assert (cpu.version, huge.version) == (1, 2)
    assert layout.tree_of("pids") is None


def test_pure_v1(tmp_path: Path) -> None:
    without = "".join(line for line in HYBRID.splitlines(True) if "cgroup2" not in line)
    layout = found(tmp_path, without)
    assert (layout.kind, layout.unified) == ("v1", None)


def test_nothing_mounted(tmp_path: Path) -> None:
    assert found(tmp_path, "1 0 0:1 / / rw - tmpfs none rw\n").kind == "none"


@pytest.mark.parametrize(
    "line",
    [
        V2.replace("/sys/fs/cgroup rw,nosuid", "/sys/fs/cgroup ro,nosuid"),
        V2.replace("cgroup2 rw,nsdelegate", "cgroup2 ro,nsdelegate"),
    ],
    ids=["mount", "superblock"],
)
def test_read_only_trees_are_known_but_not_used(tmp_path: Path, line: str) -> None:
    layout = found(tmp_path, line, "memory")
    assert len(layout.trees) == 1
    assert layout.usable == ()
    assert layout.controllers == frozenset()


def test_of_several_mounts_the_writable_one_that_shows_all_is_taken(tmp_path: Path) -> None:
    lines = (
        V2.replace(" / /sys/fs/cgroup rw", " / /a ro")
        + V2.replace(" / /sys/fs/cgroup rw", " /docker/x /b rw")
        + V2.replace(" / /sys/fs/cgroup rw", " / /c rw")
        + V2.replace(" / /sys/fs/cgroup rw", " /docker/y /d rw")
    )
    layout = found(tmp_path, lines, "memory")
    assert [tree.mount for tree in layout.usable] == [f"{tmp_path}/c"]


def test_mount_points_with_spaces(tmp_path: Path) -> None:
    layout = found(tmp_path, V2.replace("/sys/fs/cgroup", "/my\\040cgroups"), "memory")
    assert layout.usable[0].mount == f"{tmp_path}/my cgroups"


@pytest.mark.parametrize(("comm", "parent"), [("systemd", "/ckpt.slice"), ("init", "/ckpt")])
def test_our_place_is_a_top_level_cgroup_of_our_own(tmp_path: Path, comm: str, parent: str) -> None:
    assert found(tmp_path, V2, "memory", comm).default_parent == parent


@pytest.mark.parametrize("line", ["", "x", "1 2 3 - cgroup2", "- cgroup2 x rw", "a b c d e f g"])
def test_broken_lines_are_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(line + "\n")
    assert detect(mountinfo=str(path)).kind == "none"
