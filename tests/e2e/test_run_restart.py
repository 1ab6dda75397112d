"""Restart policies, --rm, and what is left when a command of ours is killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box, until

pytestmark = needs.CONTAINERS


def starts(box: Box, name: str) -> int:
    return box("logs", name).count("start")


def test_always_starts_again_until_it_is_stopped(box: Box) -> None:
    box.up("c", "--restart", "always", args=("sh", "-c", "echo start"))
    until(lambda: starts(box, "c") >= 3)
    box("stop", "c")
    before = starts(box, "c")
    assert box.one("c")["state"] == "stopped"
    time.sleep(0.5)
    assert starts(box, "c") == before


def test_on_failure_starts_again_as_often_as_said(box: Box) -> None:
    box.up("c", "--restart", "on-failure:2", args=("sh", "-c", "echo start; exit 1"))
    until(lambda: starts(box, "c") == 3 and box.one("c")["state"] == "stopped")
    assert box.one("c")["restarts"] == 2


def test_on_failure_leaves_a_success_alone(box: Box) -> None:
    script = "echo start; [ -e /var/f ] && exit 0; touch /var/f; exit 1"
    box.up("c", "--restart", "on-failure", args=("sh", "-c", script))
    until(lambda: starts(box, "c") == 2 and box.one("c")["state"] == "stopped")
    assert box.one("c")["exit_code"] == 0


def test_rm_removes_it_also_when_nobody_waits(box: Box) -> None:
    box("create", "--rm", "--name", "c", "--network", "none", box.rootfs, "--", "true")
    box("start", "c")
    until(lambda: box.names() == [])
    process = box.popen("run", "--rm", "--name", "d", "--network", "none", box.rootfs, "--",
                        "sh", "-c", "echo x; while ! [ -e /tmp/go ]; do sleep 0.1; done",
                        stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.read(1)
    process.kill()
    process.wait()
    box("exec", "-d", "d", "touch", "/tmp/go")
    until(lambda: box.names() == [])


def test_a_killed_monitor_is_seen_and_recovered_from(box: Box) -> None:
    box.up("c", "--network", "bridge")
    pid = box.one("c")["pid"]
    monitor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    until(lambda: box.one("c")["state"] == "lost")
    box("recover")
    assert box.one("c")["state"] in ("lost", "stopped")
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    box("start", "c")
    assert box.one("c")["state"] == "running"


def test_recover_starts_again_what_should_run(box: Box) -> None:
    box.up("c", "--restart", "always")
    pid = box.one("c")["pid"]
    monitor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    until(lambda: box.one("c")["state"] == "lost")
    box("recover")
    assert box.one("c")["state"] == "running" and box.one("c")["pid"] != pid


@pytest.mark.parametrize("verb", ["create", "run", "start", "rm"])
@pytest.mark.parametrize("part", [0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_command_killed_at_any_moment_leaves_a_sane_state(
    box: Box, verb: str, part: float
) -> None:
    """Whatever moment PART of the command's usual time hits: afterwards recover leaves all or nothing, and the
    container can be started or the name be used again."""
    words: list[object] = ["--name", "c", "--network", "bridge", box.rootfs, "--", "sleep", "1000"]
    if verb in ("start", "rm"):
        box("create", *words)
    command = {
        "create": ["create", *words],
        "run": ["run", "-d", *words],
        "start": ["start", "c"],
        "rm": ["rm", "-f", "c"],
    }[verb]
    process = box.popen(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(part * 1.2)
    process.kill()
    process.wait()
    # A monitor that lost its starter clears up by itself; recover does what is left.
    until(lambda: all(one["state"] != "creating" for one in _all(box)) or box.call("recover"))
    box("recover")
    found = {one["name"]: one["state"] for one in _all(box)}
    assert found in ({}, {"c": "created"}, {"c": "running"}, {"c": "stopped"}, {"c": "lost"})
    if found.get("c") == "running":
        assert box("exec", "c", "echo", "alive") == "alive\n"
    elif found:
        box("start", "c")
    else:
        box("run", "-d", *words)
    assert box.one("c")["state"] == "running"
    box("rm", "-f", "c")
    assert not list((box.root / "run/c").iterdir())


def _all(box: Box) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(box("ps", "-a", "--json"))
    return found
