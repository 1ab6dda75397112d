"""Jobs: processes started later, which belong to the container like its first one."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box, until
from tests.e2e.terminal import at_terminal

pytestmark = needs.CONTAINERS


def test_a_job_s_output_and_status_arrive(box: Box) -> None:
    box.up("c")
    done = box.call("exec", "c", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


def test_a_job_is_a_child_of_the_container_s_init(box: Box) -> None:
    box.up("c")
    number = box("exec", "-d", "c", "--", "sleep", "1000").strip()
    assert box("exec", "c", "cut", "-d", " ", "-f", "4", f"/proc/{number}/stat") == "1\n"


def test_a_job_lives_in_all_namespaces_cgroups_and_limits_of_the_container(box: Box) -> None:
    box.up("c", "--memory", "64m", "--ulimit", "nofile=100:100")
    pid = box.one("c")["pid"]
    kinds = ("user", "pid", "mnt", "uts", "ipc", "net", "cgroup")
    script = ";".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    seen = box("exec", "c", "sh", "-c", f"{script}; ulimit -n; hostname").split()
    assert seen == [str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds] + ["100", "c"]
    number = int(box("exec", "-d", "c", "sleep", "1000"))
    mine = {line.split(":", 2)[1]: line for line in Path(f"/proc/{pid}/cgroup").read_text().split()}
    job = next(
        other for other in Path(f"/proc/{pid}/root/proc").iterdir() if other.name == str(number)
    )
    theirs = (job / "cgroup").read_text().split()
    assert {line.split(":", 2)[1]: line for line in theirs} == mine


def test_a_job_s_user_groups_directory_and_environment(box: Box) -> None:
    box.up("c", "-e", "KEPT=1", "-e", "CHANGED=old")
    said = box(
        "exec", "-u", "web", "-w", "/var", "-e", "CHANGED=new", "c",
        "--", "sh", "-c", "id; pwd; echo $KEPT $CHANGED",
    )  # fmt: skip
    assert said == "uid=33(web) gid=33(web) groups=44(extra),45(more)\n/var\n1 new\n"
    assert "uid=5 gid=6" in box("exec", "-u", "5:6", "c", "id")
    assert "nobody-here" in box.fails(3, "exec", "-u", "nobody-here", "c", "id")
    assert "/missing" in box.fails(126, "exec", "-w", "/missing", "c", "id")


def test_a_job_has_the_container_s_capabilities_and_filter(box: Box) -> None:
    box.up("c", "--cap-drop", "ALL", "--cap-add", "chown")
    status = box("exec", "c", "grep", "-E", "Cap|NoNew|Seccomp:", "/proc/self/status")
    values = dict(line.split(":\t") for line in status.splitlines())
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 1
    assert values["NoNewPrivs"] == "1" and values["Seccomp"] == "2"


def test_commands_that_are_not_there_or_not_executable(box: Box) -> None:
    box.up("c")
    assert "no-such" in box.fails(127, "exec", "c", "no-such")
    assert "/etc/passwd" in box.fails(126, "exec", "c", "/etc/passwd")
    assert "/no/such" in box.fails(127, "exec", "-d", "c", "/no/such")


def test_input_reaches_a_job_and_its_end_too(box: Box) -> None:
    box.up("c")
    assert box("exec", "-i", "c", "wc", "-c", input="x" * 300_000) == "300000\n"
    # Without -i it has an empty one.
    assert box("exec", "c", "wc", "-c", input="not for it") == "0\n"


def test_all_of_a_large_output_arrives(box: Box) -> None:
    box.up("c")
    done = box.call("exec", "c", "dd", "if=/dev/zero", "bs=1M", "count=8", text=False)
    assert done.returncode == 0 and len(done.stdout) == 8 << 20


def test_a_slow_reader_loses_nothing_and_a_reader_that_leaves_stops_nobody(box: Box) -> None:
    box.up("c")
    number = None
    process = box.popen("exec", "c", "--", "yes", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(4) == b"y\ny\n"
    jobs = json.loads(box("jobs", "--json", "c"))
    number = next(iter(jobs))
    process.stdout.close()  # `ckpt exec c yes | head`: the reader is gone
    until(lambda: process.poll() is not None)
    # The job itself goes on as part of the container; its output goes to its log from now on.
    assert "ended_ns" not in json.loads(box("jobs", "--json", "c"))[number]
    box("exec", "c", "kill", "-9", number)
    until(lambda: json.loads(box("jobs", "--json", "c"))[number].get("signal") == 9)


def test_a_detached_job_is_logged_waited_for_and_listed(box: Box) -> None:
    box.up("c")
    number = box("exec", "-d", "c", "sh", "-c", "echo hello; sleep 0.3; exit 4").strip()
    assert box("wait", "--job", number, "c") == "4\n"
    assert box("logs", "--job", number, "c") == "hello\n"
    listed = json.loads(box("jobs", "--json", "c"))[number]
    assert listed["exit_code"] == 4 and listed["args"][0] == "sh"
    assert "exited (4)" in box("jobs", "c")
    assert "job 9999 of c" in box.fails(10, "wait", "--job", "9999", "c")
    assert "job 9999" in box.fails(10, "logs", "--job", "9999", "c")


def test_signals_of_exec_reach_the_job(box: Box) -> None:
    box.up("c")
    script = 'trap "echo asked; exit 6" TERM; echo ready; while :; do sleep 0.1; done'
    process = box.popen("exec", "c", "sh", "-c", script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "asked\n" and process.wait(60) == 6


def test_a_killed_exec_leaves_its_job_running_and_logged(box: Box) -> None:
    box.up("c")
    process = box.popen(
        "exec", "c", "sh", "-c", "echo before; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo after",
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "before\n"
    process.kill()
    process.wait()
    number = next(iter(json.loads(box("jobs", "--json", "c"))))
    box("exec", "c", "touch", "/tmp/go")
    assert box("wait", "--job", number, "c") == "0\n"
    until(lambda: box("logs", "--job", number, "c") == "after\n")


def test_attach_follows_a_job_that_runs(box: Box) -> None:
    box.up("c")
    script = "while ! [ -e /tmp/go ]; do sleep 0.1; done; echo there; exit 2"
    number = box("exec", "-d", "c", "sh", "-c", script).strip()
    process = box.popen("attach", "--job", number, "c", stdout=subprocess.PIPE, text=True)
    until(lambda: _has_followers(box, "c"))
    box("exec", "c", "touch", "/tmp/go")
    assert process.stdout is not None and process.stdout.read() == "there\n"
    assert process.wait(60) == 2


def _has_followers(box: Box, name: str) -> bool:
    """Whether more than the listening socket is open in the monitor."""
    pid = box.one(name)["pid"]
    monitor = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    fds = [str(fd.readlink()) for fd in Path(f"/proc/{monitor}/fd").iterdir()]
    return sum(target.startswith("socket:") for target in fds) > 1


def test_the_end_of_the_container_ends_its_jobs(box: Box) -> None:
    box.up("c", args=("sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.1; done"))
    number = box("exec", "-d", "c", "sleep", "1000").strip()
    process = box.popen("exec", "c", "sleep", "1000")
    until(lambda: len(json.loads(box("jobs", "--json", "c"))) == 2)
    box("exec", "-d", "c", "touch", "/tmp/go")
    assert process.wait(60) == 137
    assert box("wait", "c") == "0\n"
    assert box("wait", "--job", number, "c") == "137\n"


@pytest.mark.parametrize("verb", [["exec", "-it"], ["exec", "-t", "-i", "-u", "web"]])
def test_a_terminal_is_one(box: Box, verb: list[str]) -> None:
    box.up("c")
    with at_terminal(box, *verb, "c", "sh", rows=33, columns=101) as person:
        person.sees("\x1b[6n")  # the shell's prompt is there
        person.type("stty size; tty; echo $((6*7))\n")
        person.sees("42")
        assert "/dev/pts/" in person.seen
        person.type("until stty size | grep ^4; do sleep 0.1; done\n")
        person.resize(40, 120)
        person.process.send_signal(signal.SIGWINCH)
        person.sees("40 120")
        # It says so when it has the terminal: earlier, Ctrl-C would be for the shell.
        person.type("sh -c 'echo begin; exec sleep 1000'\n")
        person.sees("begin\r\n")
        person.seen = ""
        person.type("\x03")  # Ctrl-C is for the sleep, not for us
        person.sees("\x1b[6n")
        person.type("echo alive=$?\n")
        person.sees("alive=130")
        person.type("exit 3\n")
        assert person.ends() == 3


def test_the_terminal_has_its_size_from_the_beginning_on(box: Box) -> None:
    box.up("c")
    with at_terminal(box, "exec", "-t", "c", "sh", "-c", "stty size", rows=7, columns=9) as it:
        it.sees("7 9")
        assert it.ends() == 0


def test_one_can_walk_away_from_a_terminal(box: Box) -> None:
    box.up("c")
    with at_terminal(box, "exec", "-it", "c", "sh") as person:
        person.sees("\x1b[6n")
        person.type("echo here\n")
        person.sees("here\r\n")
        person.type("\x10\x11")  # Ctrl-P Ctrl-Q
        assert person.ends() == 0
    number = next(iter(json.loads(box("jobs", "--json", "c"))))
    assert "ended_ns" not in json.loads(box("jobs", "--json", "c"))[number]
    with at_terminal(box, "attach", "--job", number, "c") as person:
        person.type("\n")
        person.sees("\x1b[6n")
        person.type("echo again; exit 5\n")
        person.sees("again\r\n")
        assert person.ends() == 5


@needs.criu
def test_shells_at_their_terminals_are_dumped_and_restored_again_and_again(box: Box) -> None:
    """Busybox's shell opens /dev/tty, which CRIU takes only from who holds the terminal's first end."""
    box.up("c", "-t", "-i", args=("sh",))
    number = box("exec", "-d", "-t", "c", "sh", "-c", "exec 3<>/dev/tty; sleep 1000").strip()
    for turn in range(3):
        box("dump", "c", "--as", f"turn-{turn}")
        box("rm", "c")
        box("restore", f"turn-{turn}")
    assert "running" in box("jobs", "c")
    with at_terminal(box, "attach", "c", rows=21, columns=61) as person:
        person.type("\n")
        person.sees("\x1b[6n")
        person.type("stty size; exit 7\n")
        assert person.ends() == 7
        assert "21 61" in person.seen
    assert box("wait", "--job", number, "c") == "137\n"
