"""create, start, stop, kill, rm, ps, inspect, wait, rename: the life of a container."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box, until

pytestmark = needs.CONTAINERS

TRAP = 'trap "echo asked; exit 5" TERM; echo ready; while :; do sleep 0.1; done'


def test_run_prints_what_the_command_writes_and_ends_with_its_status(box: Box) -> None:
    done = box.call(
        "run",
        "--rm",
        "--network",
        "none",
        box.rootfs,
        "--",
        "sh",
        "-c",
        "echo o; echo e >&2; exit 7",
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "o\n", "e\n")
    assert box.names() == []


def test_a_container_goes_through_its_states_in_order(box: Box) -> None:
    box("create", "--name", "c", "--network", "none", box.rootfs, "--", "sh", "-c", "exit 3")
    assert box.one("c")["state"] == "created"
    box("start", "c")
    assert box("wait", "c") == "3\n"
    assert until(lambda: box.one("c")["state"]) == "stopped"
    assert box.one("c")["state_text"] == "exited (3)"
    box("start", "c")  # a stopped container starts anew, with what it wrote
    assert box("wait", "c") == "3\n"


def test_what_a_container_wrote_is_there_after_a_restart_and_gone_after_rm(box: Box) -> None:
    box.up("c", args=("sh", "-c", "cat /var/f; echo x >> /var/f; sleep 1000"))
    home = Path(box.inspect("c")["paths"]["home"])
    box("stop", "-t", "0", "c")
    box("start", "c")
    until(lambda: box("logs", "c").count("x") == 1)
    box("rm", "-f", "c")
    assert not home.exists() and box.names() == []


def test_stop_asks_and_the_command_may_end_in_its_own_way(box: Box) -> None:
    box.up("c", args=("sh", "-c", TRAP))
    until(lambda: "ready" in box("logs", "c"))
    box("stop", "-t", "60", "c")
    assert box.one("c")["exit_code"] == 5 and "asked" in box("logs", "c")


def test_stop_kills_what_does_not_listen(box: Box) -> None:
    box.up("c", args=("sh", "-c", 'trap "" TERM; echo ready; sleep 1000 & wait; wait'))
    until(lambda: "ready" in box("logs", "c"))
    box("stop", "-t", "0.2", "c")
    assert box.one("c")["exit_code"] == 137


def test_stopping_what_is_stopped_is_no_error(box: Box) -> None:
    box.up("c")
    box("stop", "-t", "0", "c")
    box("stop", "c")


def test_signals_reach_the_command(box: Box) -> None:
    box.up("c", args=("sh", "-c", 'trap "echo one" USR1; echo ready; while :; do sleep 0.1; done'))
    until(lambda: "ready" in box("logs", "c"))
    box("kill", "-s", "USR1", "c")
    until(lambda: "one" in box("logs", "c"))
    box("kill", "-s", "SIGSTOP", "c")
    pid = box.one("c")["pid"]
    child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def state() -> str:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]

    until(lambda: state() == "T")
    box("kill", "-s", "18", "c")
    until(lambda: state() != "T")
    box("kill", "c")
    assert box("wait", "c") == "137\n"


def test_a_foreground_run_passes_signals_on(box: Box) -> None:
    process = box.popen(
        "run", "--rm", "--name", "c", "--network", "none", box.rootfs, "--", "sh", "-c", TRAP,
        stdout=-1, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "asked\n"
    assert process.wait(60) == 5


def test_no_zombies_and_orphans_are_reaped(box: Box) -> None:
    script = "for i in 1 2 3; do (sleep 0.01 &) ; done; echo done; sleep 1000"
    box.up("c", args=("sh", "-c", script))
    until(lambda: "done" in box("logs", "c"))
    until(lambda: "Z" not in box("exec", "c", "sh", "-c", "cat /proc/[0-9]*/stat | cut -d' ' -f3"))


def test_ps_shows_what_runs_and_with_all_the_rest(box: Box) -> None:
    box.up("runs")
    box("create", "--name", "waits", "--network", "none", box.rootfs, "--", "true")
    box.up("ended", args=("true",))
    box("wait", "ended")
    assert set(box("ps", "-q").split()) == {"runs", "waits"}
    table = box("ps", "-a")
    assert table.splitlines()[0].split()[:3] == ["NAME", "ID", "STATE"]
    assert "exited (0)" in table
    states = {one["name"]: one["state"] for one in json.loads(box("ps", "-a", "--json"))}
    assert states == {"runs": "running", "waits": "created", "ended": "stopped"}


def test_a_container_is_found_by_the_beginning_of_its_id(box: Box) -> None:
    box.up("c")
    identity = box.one("c")["id"]
    assert box("exec", identity[:5], "hostname") == "c\n"


def test_inspect_knows_everything(box: Box) -> None:
    box.up("c", "--memory", "64m", "-e", "A=1")
    found = box.inspect("c")
    assert found["record"]["spec"]["linux"]["resources"]["memory"]["limit"] == 64 << 20
    assert "A=1" in found["record"]["spec"]["process"]["env"]
    assert os.path.isdir(found["paths"]["upper"]) and found["cgroups"]


def test_rename_keeps_it_running(box: Box) -> None:
    box.up("old")
    pid = box.one("old")["pid"]
    box("rename", "old", "new")
    assert box.names() == ["new"] and box.one("new")["pid"] == pid
    box("exec", "new", "true")
    box.up("other")
    assert "has that name" in box.fails(11, "rename", "new", "other")


def test_what_runs_is_not_removed_without_force(box: Box) -> None:
    box.up("c")
    assert "it is running" in box.fails(12, "rm", "c")
    box("rm", "-f", "c")
    assert box.names() == []


def test_nothing_is_left_of_a_container_on_the_host(box: Box) -> None:
    box.up("c", "--network", "bridge", "--memory", "64m")
    groups = list(box.inspect("c")["cgroups"].values())
    assert groups and all(os.path.isdir(path) for path in groups)
    box("rm", "-f", "c")
    assert not any(os.path.exists(path) for path in groups)
    assert not any((box.root / "run/c").iterdir())
    assert not any((box.root / "containers").iterdir())


@pytest.mark.parametrize(
    ("code", "flags"),
    [
        (3, ["--name", "../x"]),
        (3, ["--name", "x" * 64]),
        (3, ["--memory", "lots"]),
        (3, ["--cpus", "-1"]),
        (3, ["-e", "nothing"]),
        (3, ["-v", "relative/path:/x"]),
        (3, ["-v", "/etc:/x/../y"]),
        (3, ["--tmpfs", "x"]),
        (3, ["-u", "nobody-here"]),
        (3, ["-u", "70000"]),
        (3, ["--cap-add", "CAP_NONSENSE"]),
        (3, ["--restart", "sometimes"]),
        (3, ["--network", "l2=br0"]),
        (3, ["-p", "70000:80"]),
        (3, ["--network", "none", "-p", "8080:80"]),
        (3, ["--ulimit", "nofile=x"]),
        (3, ["--sysctl", "kernel.panic"]),
        (13, ["--sysctl", "kernel.panic=1"]),
        (3, ["--security-opt", "label=x"]),
        (3, ["--hostname", "bad name"]),
        (10, ["-v", "/no/such/place:/x"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_nothing_is_made(
    box: Box, code: int, flags: list[str]
) -> None:
    said = box.fails(code, "run", *flags, box.rootfs, "--", "true")
    assert said.startswith("ckpt: ")
    assert box.names() == [] and not (box.root / "volumes").exists()


def test_a_name_can_be_had_once(box: Box) -> None:
    box.up("c")
    assert "has that name" in box.fails(11, "create", "--name", "c", box.rootfs, "--", "true")


def test_a_root_file_system_that_is_not_there_is_named(box: Box) -> None:
    assert "/no/rootfs" in box.fails(10, "run", "/no/rootfs", "--", "true")
    assert "command" in box.fails(3, "run", box.rootfs)


@pytest.mark.parametrize(
    "verb", ["start", "stop", "kill", "rm", "inspect", "logs", "wait", "attach"]
)
def test_a_container_that_is_not_there_is_named(box: Box, verb: str) -> None:
    assert "container ghost" in box.fails(10, verb, "ghost")


def test_transitions_that_make_no_sense_are_refused(box: Box) -> None:
    box.up("c")
    assert "it is running" in box.fails(12, "start", "c")
    assert "signal" in box.fails(3, "kill", "-s", "NONSENSE", "c")
    assert "signal" in box.fails(3, "kill", "-s", "99", "c")
    box("stop", "-t", "0", "c")
    assert "it is stopped" in box.fails(12, "kill", "c")
    assert "it is stopped" in box.fails(12, "exec", "c", "true")


def test_a_command_that_cannot_be_executed_ends_with_what_a_shell_would_say(box: Box) -> None:
    flags = ["run", "--network", "none"]
    assert "no-such-command" in box.fails(127, *flags, box.rootfs, "--", "no-such-command")
    assert "/etc/passwd" in box.fails(126, *flags, "-d", box.rootfs, "--", "/etc/passwd")
    assert box.names() == []
