"""Limits that the kernel really keeps, on processes that really run into them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.cgroups.layout import Layout
from runtime.cgroups.resources import Resources
from runtime.errors import Conflict, TimedOut
from tests import needs, runtag
from tests.patience import patient

pytestmark = [needs.root, needs.cgroup_write]

PARENT = f"/ckpt-{runtag.TAG}"
MIB = 1 << 20

# Enters the cgroup by itself, as the container's first process will, and only then starts.
_ENTER = """
import os, sys
for path in sys.argv[1].split(","):
    with open(path, "w") as file:
        file.write("0")
"""


@pytest.fixture
def layout() -> Layout:
    return cgroups.detect()


@pytest.fixture
def cgroup(layout: Layout) -> Iterator[cgroups.Cgroup]:
    made = cgroups.create(layout, PARENT, "web")
    yield made
    made.kill()
    made.remove()


def start(cgroup: cgroups.Cgroup, code: str, **options: Any) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _ENTER + code, ",".join(cgroup.enter_paths())]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options)


def run(cgroup: cgroups.Cgroup, code: str) -> tuple[int, str]:
    process = start(cgroup, code)
    out, err = process.communicate(timeout=patient(60))
    return process.returncode, out + err


def limit(cgroup: cgroups.Cgroup, **spec: Any) -> None:
    cgroup.apply(Resources.from_oci(spec))


def test_beyond_its_memory_a_process_is_killed_and_counted(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, memory={"limit": 48 * MIB, "swap": 48 * MIB})
    assert cgroup.oom_kills() == 0
    status, _ = run(cgroup, "x = bytearray(200 << 20)")
    assert status == -9
    assert cgroup.oom_kills() == 1
    memory = cgroup.stats().memory
    assert memory.limit == 48 * MIB
    assert memory.peak is not None
    assert 40 * MIB < memory.peak <= 48 * MIB


def test_within_its_memory_it_lives(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, memory={"limit": 64 * MIB, "swap": 64 * MIB})
    assert run(cgroup, "x = bytearray(20 << 20); print(len(x))") == (0, f"{20 * MIB}\n")
    assert cgroup.oom_kills() == 0


def test_a_limit_below_what_is_in_use_is_refused_and_kills_nobody(
    cgroup: cgroups.Cgroup,
) -> None:
    limit(cgroup, memory={"limit": 128 * MIB, "swap": 128 * MIB})
    process = start(cgroup, "x = bytearray(50 << 20); print('up', flush=True); input()")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    lower = Resources.from_oci({"memory": {"limit": 20 * MIB}})
    with pytest.raises(Conflict, match="in use"):
        cgroup.update(lower)
    assert cgroup.read().memory.limit == 128 * MIB
    assert process.poll() is None
    process.communicate("\n", timeout=patient(30))
    assert process.returncode == 0


def test_no_more_processes_than_allowed(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, pids={"limit": 3})
    code = """
children = []
try:
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            import signal; signal.pause()
        children.append(pid)
except OSError as error:
    print(error.errno, len(children))
for pid in children:
    os.kill(pid, 9); os.waitpid(pid, 0)
"""
    assert run(cgroup, code) == (0, "11 2\n")
    assert cgroup.stats().pids.limit == 3


def test_a_quota_throttles(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, cpu={"quota": 5_000, "period": 50_000})
    # 0.1 s of CPU time with a tenth of a CPU: many periods end throttled.
    code = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.1: pass"
    assert run(cgroup, code)[0] == 0
    cpu = cgroup.stats().cpu
    assert cpu.throttled_periods is not None and cpu.usage_us is not None
    assert cpu.throttled_periods >= 5
    assert cpu.usage_us >= 100_000


def test_a_cpuset_binds(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, cpu={"cpus": "0"})
    assert run(cgroup, "print(os.sched_getaffinity(0))") == (0, "{0}\n")


def test_what_is_written_to_a_disk_is_counted(cgroup: cgroups.Cgroup, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
        pytest.fail(f"{tmp_path} isn't on a disk")
    code = f"""
fd = os.open({str(tmp_path / "data")!r}, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
import mmap
page = mmap.mmap(-1, 1 << 20)
os.write(fd, page); os.close(fd); page.close()
"""
    assert run(cgroup, code) == (0, "")
    assert sum(disk.write_bytes for disk in cgroup.stats().io) >= MIB


def test_a_frozen_process_does_nothing_until_it_is_thawed(cgroup: cgroups.Cgroup) -> None:
    process = start(cgroup, "print('up', flush=True)\nprint(input(), flush=True)")
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "up\n"
    cgroup.freeze()
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert select.select([process.stdout], [], [], 0.2) == ([], [], [])
    cgroup.thaw()
    assert process.communicate(timeout=patient(30))[0] == "hello\n"


def test_kill_gets_all_of_a_family_that_forks_all_the_time(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, pids={"limit": 30})
    code = """
import time
print("up", flush=True)
def grow():
    while True:
        try:
            if os.fork() == 0:
                grow()
        except OSError:
            time.sleep(0.001)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]: pass
        except ChildProcessError:
            pass
grow()
"""
    process = start(cgroup, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    cgroup.kill()
    process.communicate(timeout=patient(30))
    assert process.returncode == -9
    cgroup.remove()
    assert not cgroup.exists()


@needs.cgroup_v1
def test_without_a_v2_tree_the_v1_freezer_freezes_and_kills(layout: Layout) -> None:
    without = replace(layout, kind="v1", trees=tuple(t for t in layout.trees if t.version == 1))
    cgroup = cgroups.create(without, PARENT, "old")
    process = start(cgroup, "print('up', flush=True)\ninput()")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        cgroup.freeze()
        assert cgroup.frozen()
        assert "freezer" in cgroup.freezer_path()
        cgroup.kill()
        process.communicate(timeout=patient(30))
        assert process.returncode == -9
    finally:
        cgroup.remove()


def test_a_freeze_that_takes_too_long_is_undone(
    cgroup: cgroups.Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel never says that all are frozen, as with a task that hangs in it."""
    process = start(cgroup, "print('up', flush=True)\nprint(input())")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    with monkeypatch.context() as patch:
        patch.setattr("runtime.cgroups.cgroup.wait", lambda condition, timeout: False)
        with pytest.raises(TimedOut, match="thawed again"):
            cgroup.freeze(timeout=0.01)
    assert process.communicate("on\n", timeout=patient(30))[0] == "on\n"


RULES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
]
# /dev/null 1:3, /dev/zero 1:5, /dev/full 1:7
_OPEN = """
tries = [("/dev/null", os.O_RDWR), ("/dev/zero", os.O_RDONLY), ("/dev/zero", os.O_WRONLY)]
tries += [("/dev/full", os.O_RDONLY)]
for path, flags in tries:
    try:
        os.close(os.open(path, flags)); print("yes", end=" ")
    except PermissionError:
        print("no", end=" ")
"""


def test_devices_that_are_not_allowed_cannot_be_opened(cgroup: cgroups.Cgroup) -> None:
    limit(cgroup, devices=RULES)
    assert run(cgroup, _OPEN) == (0, "yes yes no no ")


def test_the_device_program_of_cgroup_v2_does_the_same_and_can_be_replaced(
    layout: Layout,
) -> None:
    trees = tuple(tree for tree in layout.trees if "devices" not in tree.controllers)
    cgroup = cgroups.create(replace(layout, trees=trees), PARENT, "bpf")
    try:
        limit(cgroup, devices=RULES)
        assert run(cgroup, _OPEN) == (0, "yes yes no no ")
        full = {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "r"}
        limit(cgroup, devices=[*RULES, full])
        assert run(cgroup, _OPEN) == (0, "yes yes no yes ")
        limit(cgroup, devices=[{"allow": True}])
        assert run(cgroup, _OPEN) == (0, "yes yes yes yes ")
    finally:
        cgroup.remove()


def test_many_at_once_do_not_take_each_others_parent_away(layout: Layout) -> None:
    """Each makes and removes a cgroup below the same parent, which goes with the last."""
    code = f"""
import sys
sys.path.insert(0, {str(needs.REPO)!r})
from runtime import cgroups
layout = cgroups.detect()
for number in range(15):
    cgroup = cgroups.create(layout, {PARENT!r}, sys.argv[1] + str(number))
    cgroup.remove()
print("done")
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name in "abc"
    ]
    results = [worker.communicate(timeout=patient(60)) for worker in workers]
    assert results == [(b"done\n", b"")] * 3
    assert not any(os.path.exists(tree.path(PARENT)) for tree in layout.usable)
