"""What a killed test run left is taken away, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import leaks, needs, runtag, sweep
from tests.patience import patient

pytestmark = needs.root


@pytest.fixture
def dead_tag() -> str:
    """The tag of a run whose owner has just died."""
    process = subprocess.Popen(["true"])
    process.wait()
    return f"t{process.pid}"


@needs.tool("ip", "mount")
def test_everything_of_a_dead_run_goes(dead_tag: str) -> None:
    root = Path(f"/tmp/ckpt-{dead_tag}-1")
    (root / "mnt").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "mnt"], check=True)
    (root / "mnt" / "file").write_text("x")
    subprocess.run(["ip", "netns", "add", f"ckpt-{dead_tag}-a"], check=True)
    daemon = subprocess.Popen(["sleep", "60"], env={**os.environ, runtag.VARIABLE: dead_tag})

    assert dead_tag in sweep.dead_runs()
    sweep.sweep(dead_tag)

    assert daemon.wait(timeout=patient(5)) == -signal.SIGKILL
    assert not root.exists()
    assert leaks.mount_points(str(root)) == []
    assert not Path("/run/netns", f"ckpt-{dead_tag}-a").exists()
    assert dead_tag not in sweep.dead_runs()


@needs.cgroup_write
def test_a_daemon_with_an_environment_of_its_own_is_known_by_its_root(dead_tag: str) -> None:
    root = Path(f"/tmp/ckpt-{dead_tag}-1")
    root.mkdir()
    base = Path("/sys/fs/cgroup/memory") if needs.missing("cgroup_v2") else needs.CGROUP
    cgroup = base / f"ckpt-sweep-test-{os.getpid()}"
    cgroup.mkdir()
    daemon = subprocess.Popen(
        ["/bin/sleep", "60"], env={"CKPT_ROOT": str(root)}, start_new_session=True
    )
    try:
        (cgroup / "cgroup.procs").write_text(str(daemon.pid))

        sweep.sweep(dead_tag)

        assert daemon.wait(timeout=patient(5)) == -signal.SIGKILL
        assert not cgroup.exists()
        assert not root.exists()
    finally:
        daemon.kill()
        daemon.wait()
        if cgroup.exists():
            cgroup.rmdir()


def test_this_run_is_never_swept_as_dead() -> None:
    root = Path(f"/tmp/ckpt-{runtag.TAG}-not-dead")
    root.mkdir()
    try:
        assert runtag.TAG not in sweep.dead_runs()
    finally:
        root.rmdir()


@needs.tool("mount")
def test_clearing_a_root_does_not_reach_into_what_is_mounted_there(ckpt_root: Path) -> None:
    outside = ckpt_root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    inner = ckpt_root / "root"
    (inner / "bound").mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, inner / "bound"], check=True)

    assert sweep.clear(inner) == [f"mount {inner}/bound"]

    assert not inner.exists()
    assert (outside / "precious").read_text() == "x"


def test_processes_of_other_roots_stay(ckpt_root: Path) -> None:
    mine = subprocess.Popen(["sleep", "60"], env={**os.environ, "CKPT_ROOT": str(ckpt_root)})
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert [line.split()[1] for line in sweep.stop_processes_using(ckpt_root)] == [
            str(mine.pid)
        ]
        assert mine.wait(timeout=patient(5)) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
