"""`--disk`: what a container may write, kept by the project quotas of a real file system.

Few kernels of build machines have them, Debian's do: `make test-vm` runs this file in a guest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.quota import kernel, project
from tests import needs
from tests.e2e.box import Box, opened

pytestmark = [
    needs.root, needs.overlayfs, needs.tool("busybox"), needs.compiler, needs.cgroup_write,
]  # fmt: skip

MIB = 1 << 20
FULL = "Disk quota exceeded"
FILL = "dd if=/dev/zero of=/{} bs=1M count=40 2>&1 || true"
# Nothing is renamed from one project into another, whatever kind of file it is and whoever made it.
RENAMES = (
    "mkdir -p /a /b/c && ln -s x /a/link && mkfifo /a/fifo && echo >/a/file && mv /a/* /b/c && "
    "mv /b/c /a && mv /etc/passwd /a && mv /a/passwd /etc"
)


def programs(tool: str) -> str:
    found = needs.find_tool(tool)
    assert found
    return found


@pytest.fixture
def disk(ckpt_root: Path) -> Iterator[Path]:
    """A file system of 200 MiB with project quotas, until the test ends."""
    image, where = ckpt_root / "disk.img", ckpt_root / "disk"
    with image.open("wb") as file:
        file.truncate(200 * MIB)
    subprocess.run([programs("mke2fs"), *needs.PROJECT_EXT4, str(image)], check=True)
    where.mkdir()
    ckpt_root.chmod(0o711)
    subprocess.run(["mount", "-o", "loop,prjquota", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.fixture
def limited(disk: Path, small_rootfs: Path) -> Iterator[Box]:
    """A ckpt host on it."""
    with opened(disk / "ckpt", small_rootfs) as made:
        yield made


def inside(box: Box, name: str, script: str) -> str:
    return box("exec", name, "sh", "-c", script)


def upper(box: Box, name: str) -> Path:
    return Path(box.inspect(name)["paths"]["upper"])


def numbers(directory: Path) -> kernel.Quota:
    return project.quota(directory)


@needs.project_quotas
def test_a_limit_holds_can_be_changed_and_is_forgotten_in_the_end(limited: Box) -> None:
    box = limited
    box.up("c", "--disk", "20m")
    assert inside(box, "c", f"{RENAMES} && df -k / | tail -n 1").split()[1] == str(20 << 10)
    assert FULL in inside(box, "c", FILL.format("one"))
    found = box.inspect("c")["disk"]
    assert found["limit"] == 20 * MIB and 19 * MIB < found["used"] <= 20 * MIB

    assert "delete files in it first" in box.fails(3, "update", "--disk", "5m", "c")
    box("update", "--disk", "30m", "--memory", "64m", "c")
    assert FULL in inside(box, "c", FILL.format("two"))
    assert 29 * MIB < box.inspect("c")["disk"]["used"] <= 30 * MIB
    # Another start is under the same limit, which may have been lost meanwhile; nor is what is full read-only then.
    box("stop", "-t", "0", "c")
    project.limit(upper(box, "c").parent, 0)
    box("start", "c")
    assert FULL in inside(box, "c", FILL.format("three"))
    # An update that fails elsewhere leaves it as it was.
    assert box.call("update", "--disk", "50m", "--memory", "4k", "c").returncode
    assert box.inspect("c")["disk"]["limit"] == 30 * MIB
    box("update", "--disk", "-1", "c")
    assert FULL not in inside(box, "c", FILL.format("four"))
    assert box.inspect("c")["disk"]["limit"] is None

    box("update", "--disk", "100m", "c")
    where = upper(box, "c")
    number = project.of(where)
    fd = kernel.opened(box.root)
    try:
        assert number and kernel.quota_of(fd, number).limit == 100 * MIB
        box("rm", "-f", "c")
        assert kernel.quota_of(fd, number) == kernel.Quota(limit=0, used=0, files=0)
    finally:
        os.close(fd)


@needs.project_quotas
def test_each_container_has_its_own_also_one_without_a_limit_or_of_another_root(
    limited: Box, disk: Path
) -> None:
    limited.up("a", "--disk", "20m")
    limited.up("b")
    inside(limited, "b", FILL.format("much"))
    assert FULL in inside(limited, "a", FILL.format("one"))
    limited("update", "--disk", "50m", "b")
    assert FULL in inside(limited, "b", FILL.format("more"))
    with opened(disk / "other", limited.rootfs) as other:
        other.up("a", "--disk", "10m")
        assert FULL in inside(other, "a", FILL.format("one"))
        where = [upper(limited, "a"), upper(limited, "b"), upper(other, "a")]
        assert len({project.of(path) for path in where}) == 3
        assert [numbers(path).limit // MIB for path in where] == [20, 50, 10]
        # The flag is part of the spec: a bundle has it too.
        bundle = disk / "bundle"
        bundle.mkdir()
        spec = other(
            "spec", "--disk", "15m", "--network", "none", limited.rootfs, "--", "sleep", "9"
        )
        (bundle / "config.json").write_text(spec)
        other("create", "--name", "bundled", bundle)
        assert other.inspect("bundled")["disk"]["limit"] == 15 * MIB


@needs.project_quotas
def test_no_program_inside_gets_out_of_it(limited: Box, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    shutil.copytree(limited.rootfs, rootfs, symlinks=True)
    source = Path(__file__).with_name("quota_escapes.c")
    compiler = programs("cc")
    subprocess.run([compiler, "-static", "-o", rootfs / "bin/escape", source], check=True)
    limited("run", "-d", "--name", "c", "--network", "none", "--disk", "20m", "--cap-add", "ALL",
            "--security-opt", "seccomp=unconfined", rootfs, "--", "sleep", "1000")  # fmt: skip
    inside(limited, "c", "echo x >/file")
    for words in (("project", "/file"), ("inherit", "/")):
        done = limited.call("exec", "c", "escape", *words)
        assert done.returncode in (errno.EPERM, errno.EINVAL), (words, done)
    done = limited.call("exec", "c", "escape", "map", "/sparse", "40")
    assert done.returncode == 128 + signal.SIGBUS
    assert FULL in inside(limited, "c", FILL.format("more"))
    assert numbers(upper(limited, "c")).used <= 20 * MIB
    assert "user namespace" in limited.fails(
        3, "run", "--network", "none", "--disk", "20m", "--userns", "host", rootfs, "--", "true"
    )


@needs.project_quotas
@needs.criu
def test_a_checkpoint_has_its_limit_and_what_it_used_is_counted_again(
    limited: Box, ckpt_root: Path
) -> None:
    box = limited
    box.up("c", "--disk", "20m", args=("tail", "-f", "/dev/null"))
    inside(box, "c", f"{RENAMES} && dd if=/dev/zero of=/half bs=1M count=10")
    before = box.inspect("c")["disk"]
    stream = ckpt_root / "stream"
    box("dump", "-o", stream, "c")
    box("rm", "-f", "c")
    box("restore", stream)
    after = box.inspect("c")["disk"]
    assert after["limit"] == before["limit"] == 20 * MIB
    assert abs(after["used"] - before["used"]) < MIB
    assert FULL in inside(box, "c", FILL.format("more"))
    inside(box, "c", f"rm /more && rm -r /a && {RENAMES}")
    assert box.inspect("c")["disk"]["used"] < 11 * MIB
    # A host that can't keep the limit doesn't take it.
    with opened(ckpt_root / "plain", box.rootfs) as plain:
        assert "no project quotas" in plain.fails(13, "restore", stream)
        assert plain.names() == []


def test_a_file_system_without_project_quotas_is_refused_by_name(box: Box) -> None:
    said = box.fails(13, "run", "--network", "none", "--disk", "20m", box.rootfs, "--", "true")
    assert said.startswith("ckpt: limiting --disk: the file system of ")
    assert "has no project quotas" in said and ("prjquota" in said or "ext4 or XFS" in said)
    assert box.names() == []
    box.up("c")
    assert "has no project quotas" in box.fails(13, "update", "--disk", "20m", "c")
    box("update", "--disk", "-1", "c")
    found = box.inspect("c")
    assert found["disk"] is None
    rows = json.loads(box.call("doctor", "--json").stdout)["rows"]
    (row,) = (row for row in rows if row["name"] == "disk limits")
    assert row["level"] == "warn" and "no project quotas" in row["value"]
