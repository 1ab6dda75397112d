"""Output, input, logs, jobs and exit statuses go on across dump, restore and migration: nothing lost, nothing twice."""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.survive_lab.container import inspect, wait_for_output
from tests.lab import Host, Lab, rootfs
from tests.patience import patient

pytestmark = [*needs.SURVIVAL, pytest.mark.timeout(180)]

CHATTY = """
import os, time
number = 0
while not os.path.exists("/tmp/stop"):
    lines = "".join(f"{n}\\n" for n in range(number, number + 500))
    os.write(1, lines.encode())
    os.write(2, lines.encode())
    number += 500
    # Fast until a follower's buffers are full. Then slowly: on a busy machine logs would be rotated away.
    time.sleep(0.02 if number < 100_000 else 0.2)
os.write(1, b"end\\n")
"""
LISTENER = """
import os, sys, time
print("ready", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.01)
for line in sys.stdin:
    print("heard", line.strip(), flush=True)
print("the end of input", flush=True)
"""
TWO_NAMES = """
import os, time
fd = os.open("/tmp/one", os.O_RDWR | os.O_CREAT)
os.link("/tmp/one", "/tmp/two")
os.unlink("/tmp/one")
print("ready", flush=True)
time.sleep(10000)
"""
WORKER = """
import os, sys, time
number = 0
while not os.path.exists("/tmp/finish"):
    print(number, flush=True)
    number += 1
    time.sleep(0.01)
sys.exit(9)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    programs = {
        "/chatty.py": CHATTY,
        "/listener.py": LISTENER,
        "/worker.py": WORKER,
        "/two.py": TWO_NAMES,
    }
    return rootfs.python(tmp_path_factory.mktemp("streams") / "rootfs", files=programs)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=()) as lab:
        yield lab


Journey = Callable[[Lab, str], Host]
_numbers = itertools.count(1)
"""In names: a test that is run again must not find what it left."""


def restored(lab: Lab, name: str) -> Host:
    a = lab["a"]
    for number in range(2):
        a.ckpt("dump", name, "--as", f"{name}-{number}")
        a.ckpt("rm", name)
        a.ckpt("restore", f"{name}-{number}", "--as", name)
    return a


def migrated(lab: Lab, name: str) -> Host:
    lab["a"].ckpt("migrate", name, "root@b")
    lab["b"].ckpt("migrate", name, "root@a")
    return lab["a"]


def left_running(lab: Lab, name: str) -> Host:
    for number in range(2):
        lab["a"].ckpt("dump", name, "--as", f"{name}-left-{number}", "--leave-running")
    return lab["a"]


journeys = pytest.mark.parametrize("journey", [restored, migrated, left_running])


def run(host: Host, tree: Path, name: str, script: str, *options: str) -> None:
    command = ["python3", "-u", "-B", script]
    options = ("-d", "--name", name, "--network", "none", *options)
    host.ckpt("run", *options, str(tree), "--", *command)


def remove(lab: Lab, name: str) -> None:
    for host in (lab["a"], lab["b"]):
        host.ckpt("rm", "-f", name, check=False)


def touch(host: Host, name: str, path: str) -> None:
    host.ckpt("exec", name, "--", "sh", "-c", f": > {path}")


def unread(init: int, number: int) -> int:
    """Bytes in the pipe that is descriptor NUMBER of a container's init."""
    fd = os.open(f"/proc/{init}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
    try:
        count = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, count)
        return count[0]
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + patient(60)
    while not condition():
        assert time.monotonic() < until, "it does not come to pass"
        time.sleep(0.05)


@contextlib.contextmanager
def attached(host: Host, name: str, text: str = "") -> Iterator[None]:
    """A follower that types TEXT, reads nothing, and stays."""
    argv = ["ckpt", "attach", name]
    process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.flush()
        yield
    finally:
        process.kill()
        process.communicate()


@journeys
def test_a_chatty_containers_log_has_every_line_once(
    lab: Lab, tree: Path, journey: Journey
) -> None:
    name = f"chatty-{journey.__name__}-{next(_numbers)}"
    run(lab["a"], tree, name, "/chatty.py")
    try:
        # A follower that doesn't read holds the output up: at the freeze the pipe is full.
        with attached(lab["a"], name):
            init = inspect(lab["a"], name)["pid"]
            wait_until(lambda: unread(init, 1) > 30_000)
            host = journey(lab, name)
        touch(host, name, "/tmp/stop")
        host.ckpt("wait", name)
        done = host.run(["ckpt", "logs", name], timeout=60)
        lines = done.stdout.split()
        assert lines.pop() == "end"
        assert [int(line) for line in lines] == list(range(len(lines)))
        assert len(lines) > 1000
        assert [int(line) for line in done.stderr.split()] == list(range(len(lines)))
    finally:
        remove(lab, name)


@journeys
def test_input_that_was_not_read_yet_is_read_after(lab: Lab, tree: Path, journey: Journey) -> None:
    name = f"listener-{journey.__name__}-{next(_numbers)}"
    run(lab["a"], tree, name, "/listener.py", "-i")
    try:
        wait_for_output(lab["a"], name, "ready")
        text = "".join(f"before {number}\n" for number in range(20))
        with attached(lab["a"], name, text):
            init = inspect(lab["a"], name)["pid"]
            wait_until(lambda: unread(init, 0) == len(text))
            host = journey(lab, name)
        with attached(host, name, "after\n"):
            touch(host, name, "/tmp/go")
            wait_for_output(host, name, "heard after")
        heard = [line for line in host.ckpt("logs", name).splitlines() if line.startswith("heard")]
        assert heard == [f"heard before {number}" for number in range(20)] + ["heard after"]
    finally:
        remove(lab, name)


@journeys
def test_jobs_their_logs_and_their_ends_move_along(lab: Lab, tree: Path, journey: Journey) -> None:
    name = f"jobs-{journey.__name__}-{next(_numbers)}"
    a = lab["a"]
    run(a, tree, name, "/listener.py", "-i")
    try:
        wait_for_output(a, name, "ready")
        ended = a.ckpt("exec", "-d", name, "--", "sh", "-c", "echo done; exit 7").strip()
        assert json.loads(a.ckpt("wait", name, "--job", ended, "--json"))["exit_code"] == 7
        works = a.ckpt("exec", "-d", name, "--", "python3", "-u", "-B", "/worker.py").strip()
        while "5\n" not in a.ckpt("logs", name, "--job", works):
            pass
        host = journey(lab, name)
        assert json.loads(host.ckpt("wait", name, "--job", ended, "--json"))["exit_code"] == 7
        assert host.ckpt("logs", name, "--job", ended) == "done\n"
        touch(host, name, "/tmp/finish")
        assert json.loads(host.ckpt("wait", name, "--job", works, "--json"))["exit_code"] == 9
        lines = host.ckpt("logs", name, "--job", works).split()
        assert [int(line) for line in lines] == list(range(len(lines)))
        assert len(lines) > 5
    finally:
        remove(lab, name)


@journeys
def test_a_restored_containers_exit_status_arrives(lab: Lab, tree: Path, journey: Journey) -> None:
    name = f"exits-{journey.__name__}-{next(_numbers)}"
    run(lab["a"], tree, name, "/worker.py")
    try:
        wait_for_output(lab["a"], name, "5\n")
        host = journey(lab, name)
        touch(host, name, "/tmp/finish")
        ended = json.loads(host.ckpt("wait", name, "--json"))
        assert (ended["exit_code"], ended["signal"]) == (9, None)
        lines = host.ckpt("logs", name).split()
        assert [int(line) for line in lines] == list(range(len(lines)))
    finally:
        remove(lab, name)


def test_what_is_left_after_a_dump_has_no_names_of_crius(lab: Lab, tree: Path) -> None:
    a = lab["a"]
    run(a, tree, "names", "/two.py")
    try:
        wait_for_output(a, "names", "ready")
        upper = Path(inspect(a, "names")["paths"]["upper"])
        a.ckpt("dump", "names", "--as", "names-0", "--leave-running")
        assert sorted(path.name for path in (upper / "tmp").iterdir()) == ["two"]
        a.ckpt("dump", "names", "--as", "names-1")
        assert sorted(path.name for path in (upper / "tmp").iterdir()) == ["two"]
        a.ckpt("rm", "names")
        a.ckpt("restore", "names-1")
        upper = Path(inspect(a, "names")["paths"]["upper"])
        assert sorted(path.name for path in (upper / "tmp").iterdir()) == ["two"]
    finally:
        remove(lab, "names")
