"""Limits: they hold, they can be changed while a container runs, and what it uses can be seen."""

from __future__ import annotations

import json
from pathlib import Path

from tests import needs
from tests.e2e.box import Box, until

pytestmark = [
    needs.root, needs.overlayfs, needs.tool("busybox"), needs.compiler, needs.cgroup_write,
]  # fmt: skip


def file_of(box: Box, name: str, v1: str, v2: str) -> str:
    """The text of a container's cgroup file, whichever hierarchy has it."""
    for label, path in box.inspect(name)["cgroups"].items():
        for file in (v2,) if label == "v2" else (v1,):
            found = Path(path, file)
            if found.exists():
                return " ".join(found.read_text().split())
    raise AssertionError(f"neither {v1} nor {v2}")


def test_limits_are_in_force_from_the_beginning_on(box: Box) -> None:
    box.up("c", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cpuset-cpus", "0",
           "--cpu-shares", "512")  # fmt: skip
    assert file_of(box, "c", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert file_of(box, "c", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert file_of(box, "c", "pids.max", "pids.max") == "50"
    assert file_of(box, "c", "cpuset.cpus", "cpuset.cpus") == "0"
    assert box("exec", "c", "grep", "Cpus_allowed_list", "/proc/self/status").split()[1] == "0"


def test_unused_time_may_be_saved_up(box: Box) -> None:
    box.up("c", "--cpus", "0.5", "--cpu-burst", "20ms")
    assert file_of(box, "c", "cpu.cfs_burst_us", "cpu.max.burst") == "20000"


def test_limits_are_changed_while_it_runs_and_stay(box: Box) -> None:
    box.up("c", "--memory", "64m", "--cpus", "0.5")
    box("update", "--memory", "128m", "--pids-limit", "99", "c")
    assert file_of(box, "c", "memory.limit_in_bytes", "memory.max") == str(128 << 20)
    assert file_of(box, "c", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    box("stop", "-t", "0", "c")
    box("update", "--cpus", "1", "c")
    box("start", "c")
    assert file_of(box, "c", "memory.limit_in_bytes", "memory.max") == str(128 << 20)
    assert file_of(box, "c", "pids.max", "pids.max") == "99"
    assert file_of(box, "c", "cpu.cfs_quota_us", "cpu.max").split()[0] == "100000"


def test_too_many_processes_are_refused_inside(box: Box) -> None:
    script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; wait"
    done = box.call("run", "--rm", "--network", "none", "--pids-limit", "10", box.rootfs, "--",
                    "sh", "-c", script)  # fmt: skip
    assert "can't fork" in done.stderr


def test_a_kill_for_want_of_memory_is_reported_as_such(box: Box) -> None:
    box.up("c", "--memory", "24m", "--memory-swap", "24m",
           args=("sh", "-c", "exec tail -c 200m /dev/zero"))  # fmt: skip
    box("wait", "c")
    found = until(lambda: (one := box.one("c"))["state"] == "stopped" and one)
    assert found["oom_killed"] is True and found["exit_code"] == 137
    assert found["state_text"] == "out of memory (137)"
    assert json.loads(box("wait", "--json", "c"))["oom_killed"] is True


def test_another_kill_is_not(box: Box) -> None:
    box.up("c", "--memory", "24m")
    box("kill", "c")
    assert json.loads(box("wait", "--json", "c"))["oom_killed"] is False


def test_stats_show_what_is_used(box: Box) -> None:
    box.up(
        "c", "--memory", "64m", args=("sh", "-c", "head -c 8m /dev/zero > /dev/shm/x; sleep 1000")
    )
    found = until(
        lambda: (one := json.loads(box("stats", "--json"))[0])["memory"]["usage"] > 8 << 20 and one
    )
    assert found["name"] == "c" and found["memory"]["limit"] == 64 << 20
    assert found["pids"]["current"] >= 2 and found["cpu"]["usage_us"] > 0
    assert "64.0 MiB" in box("stats", "c")


def test_limits_that_the_kernel_refuses_change_nothing(box: Box) -> None:
    box.up("c", "--memory", "64m")
    assert "memory" in box.fails(3, "update", "--memory", "lots", "c")
    box.call("update", "--cpuset-cpus", "999", "c")
    assert file_of(box, "c", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert box.one("c")["state"] == "running"
    box("stop", "-t", "0", "c")
    assert "running" in box.fails(12, "stats", "c")
