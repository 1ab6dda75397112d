"""The root file systems that tests put services into: what is in them really runs there."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.lab import rootfs

pytestmark = [needs.root, needs.tool("busybox")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rootfs")


def run(tree: Path, *argv: str) -> str:
    """What a program in TREE prints."""
    done = subprocess.run(
        ["chroot", str(tree), *argv],
        env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("name", "command", "says"),
    [
        pytest.param(
            "redis", "redis-server --version", "v=", marks=needs.tool("redis-server"), id="redis"
        ),
        pytest.param("nginx", "nginx -t", "successful", marks=needs.tool("nginx"), id="nginx"),
        pytest.param("node", "node -p 6*7", "42", marks=needs.tool("node"), id="node"),
        pytest.param(
            "python",
            "python3 -c 'import asyncio,ctypes,json,socket,sqlite3,ssl,zlib;print(6*7)'",
            "42",
            id="python",
        ),
        pytest.param(
            "postgresql",
            "pg_ctl --version && test $(stat -c %u /data/PG_VERSION) = $(id -u postgres)",
            "PostgreSQL",
            marks=needs.tool("postgres"),
            id="postgresql",
        ),
    ],
)
def test_a_ready_made_tree_has_all_that_its_program_needs(
    cache: Path, name: str, command: str, says: str
) -> None:
    tree = rootfs.built(cache, name)
    assert says in run(tree, "sh", "-c", command)
    assert rootfs.built(cache, name) == tree


def test_a_tree_is_roots_and_has_the_usual_directories(tmp_path: Path) -> None:
    tree = rootfs.program_rootfs(
        tmp_path / "tree",
        ["busybox"],
        files={"/usr/local/bin/hello": "#!/bin/sh\necho hello\n", "/etc/motd": "hi\n"},
        users={"worker": 1000},
        owned={"/work": "worker"},
    )
    assert stat.S_IMODE((tree / "tmp").stat().st_mode) == 0o1777
    for name in ("dev", "proc", "sys", "run", "var/tmp"):
        assert (tree / name).is_dir()
    strangers = [path for path in tree.rglob("*") if path.lstat().st_uid != 0]
    assert strangers == [tree / "work"]
    assert run(tree, "hello") == "hello\n"
    assert "uid=1000(worker)" in run(tree, "id", "worker")


def test_what_is_missing_is_named_and_what_is_there_is_kept(tmp_path: Path) -> None:
    with pytest.raises(rootfs.Missing, match="no-such-program"):
        rootfs.program_rootfs(tmp_path / "tree", ["no-such-program"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(FileExistsError):
        rootfs.program_rootfs(tmp_path / "full", [])
    assert os.listdir(tmp_path / "full") == ["file"]
