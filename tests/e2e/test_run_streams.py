"""A container's streams: input, output, log, attaching and leaving."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import needs
from tests.e2e.box import Box, until

pytestmark = needs.CONTAINERS

WAITS = "while ! [ -e /tmp/go ]; do sleep 0.1; done"


def go(box: Box, name: str) -> None:
    box("exec", "-d", name, "touch", "/tmp/go")  # its own end comes with the container's


def test_input_reaches_the_command_and_its_end_too(box: Box) -> None:
    words = ["run", "--rm", "-i", "--network", "none", box.rootfs, "--", "wc", "-c"]
    assert box(*words, input="x" * 200_000) == "200000\n"


def test_without_i_the_input_is_empty(box: Box) -> None:
    words = ["run", "--rm", "--network", "none", box.rootfs, "--", "wc", "-c"]
    assert box(*words, input="not for it") == "0\n"


def test_a_pipeline_of_containers_carries_any_bytes(box: Box) -> None:
    data = bytes(range(256)) * 4000
    words = ["run", "--rm", "-i", "--network", "none", box.rootfs, "--", "cat"]
    assert box.call(*words, input=data, text=False).stdout == data


def test_all_output_arrives_however_slow_the_reader(box: Box) -> None:
    words = ["run", "--rm", "--network", "none", box.rootfs, "--"]
    process = box.popen(*words, "dd", "if=/dev/zero", "bs=1M", "count=4", stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.read(
        1
    )  # then nothing for a while: the command must wait, or its monitor
    until(lambda: box.names())
    assert len(first + process.stdout.read()) == 4 << 20
    assert process.wait(60) == 0


def test_the_log_keeps_both_streams_apart(box: Box) -> None:
    box.up("c", args=("sh", "-c", "echo out; echo err >&2; printf unfinished"))
    box("wait", "c")
    done = box.call("logs", "c")
    assert (done.stdout, done.stderr) == ("out\nunfinished", "err\n")
    stamped = box("logs", "-t", "c").splitlines()[0]
    assert stamped.endswith("Z out") and stamped.startswith("20")


def test_following_the_log_ends_with_the_container(box: Box) -> None:
    box.up("c", args=("sh", "-c", f"echo one; {WAITS}; echo two"))
    process = box.popen("logs", "-f", "c", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "one\n"
    go(box, "c")
    assert process.stdout.read() == "two\n"
    assert process.wait(60) == 0


def test_the_log_is_rotated_and_followed_across(box: Box) -> None:
    box("create", "--name", "c", "--network", "none", "--log-size", "64k", "--log-files", "3",
        box.rootfs, "--", "sh", "-c", f"echo first; {WAITS}; seq 1 20000; echo last")  # fmt: skip
    box("start", "c")
    process = box.popen("logs", "-f", "c", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "first\n"
    go(box, "c")
    followed = process.stdout.read().splitlines()
    assert followed[-1] == "last"
    # Unless the follower is outrun, which files that are gone would show, it sees every line once.
    numbers = [int(line) for line in followed[:-1]]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 20000
    log = Path(box.inspect("c")["paths"]["log"])
    files = sorted(log.parent.glob("log*"))
    assert len(files) == 3 and all(file.stat().st_size <= 64 << 10 for file in files)
    lines = box("logs", "c").splitlines()
    assert lines[-2:] == ["20000", "last"] and "first" not in lines
    numbers = [int(line) for line in lines[:-1]]
    assert numbers == list(range(numbers[0], 20001))  # no line is missing between the files


def test_attach_follows_from_now_on_and_ends_with_the_status(box: Box) -> None:
    box.up("c", args=("sh", "-c", f"echo before; {WAITS}; echo after; exit 3"))
    until(lambda: "before" in box("logs", "c"))
    process = box.popen("attach", "c", stdout=subprocess.PIPE, text=True)
    until(lambda: _followers(box, "c"))
    go(box, "c")
    assert process.stdout is not None and process.stdout.read() == "after\n"
    assert process.wait(60) == 3


def _followers(box: Box, name: str) -> int:
    """Connections to the monitor."""
    pid = box.one(name)["pid"]
    monitor = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    fds = [str(fd.readlink()) for fd in Path(f"/proc/{monitor}/fd").iterdir()]
    return sum(target.startswith("socket:") for target in fds) - 1


def test_a_killed_attach_leaves_the_container_running(box: Box) -> None:
    box.up("c", "-i", args=("cat",))
    process = box.popen("attach", "c", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"hello\n"
    process.kill()
    process.wait()
    assert box.one("c")["state"] == "running"
    assert box("logs", "c") == "hello\n"
    # Its input is still open for the next one, whose end of input is the container's.
    done = box.call("attach", "c", input="again\n")
    assert (done.returncode, done.stdout) == (0, "again\n")


def test_output_after_the_starter_was_killed_is_logged(box: Box) -> None:
    process = box.popen("run", "--name", "c", "--network", "none", box.rootfs, "--", "sh", "-c",
                        f"echo one; {WAITS}; echo two", stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "one\n"
    process.kill()
    process.wait()
    go(box, "c")
    assert box("wait", "c") == "0\n" and box("logs", "c") == "one\ntwo\n"


def test_the_last_lines_of_a_log(box: Box) -> None:
    box.up("c", args=("seq", "1", "10"))
    box("wait", "c")
    assert box("logs", "-n", "3", "c").split() == ["8", "9", "10"]
    assert box("logs", "-n", "0", "c") == ""
