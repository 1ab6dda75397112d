"""The two-host lab: hosts that are real to SSH and to Ethernet, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs, runtag
from tests.lab import Lab, LabError, processes, topology
from tests.lab.lab import remove_dead_labs
from tests.lab.login import Login

pytestmark = [needs.root, needs.netns, needs.bridge, needs.veth, needs.sshd]


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def left_of(made: Lab) -> list[str]:
    """Everything that is still there of a lab."""
    found = topology.existing(made.run_name)
    found += [str(made.directory)] if made.directory.exists() else []
    found += [str(pid) for pid in processes.of_lab(made.directory, set())]
    return found


def test_hosts_log_in_at_each_other_without_touching_the_users_files(two_hosts: Lab) -> None:
    for source, target in (("a", "b"), ("b", "a"), ("c", "a")):
        done = two_hosts[source].ssh(
            two_hosts[target], "echo $CKPT_ROOT $CKPT_SSH_CONFIG; readlink /proc/self/ns/net"
        )
        root, config, namespace = done.stdout.split()
        assert root == str(two_hosts[target].root)
        assert config == str(two_hosts.login.config)
        inode = two_hosts[target].namespace.stat().st_ino
        assert namespace == f"net:[{inode}]"
    assert "Accepted publickey for root" in two_hosts.log_of("a")


def test_a_changed_host_key_is_noticed(two_hosts: Lab) -> None:
    known = two_hosts.login.known_hosts
    a, b = known.read_text().splitlines()
    known.write_text(f"{a.split()[0]} {' '.join(b.split()[1:])}\n")
    done = two_hosts["c"].ssh(two_hosts["a"], "true", check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_the_repositorys_ckpt_is_the_one_that_a_login_finds(two_hosts: Lab) -> None:
    found = two_hosts["a"].ssh(two_hosts["b"], "command -v ckpt").stdout.strip()
    assert Path(found).parent == Path(sys.executable).parent


def test_a_pulled_cable_separates_a_host_until_it_is_plugged_in_again(two_hosts: Lab) -> None:
    connect = [sys.executable, "-c", "import socket, sys\n"
               "socket.create_connection((sys.argv[1], 22), timeout=2).close()"]  # fmt: skip
    for address in (two_hosts["a"].address, two_hosts["a"].address6):
        two_hosts["c"].run([*connect, address])
    two_hosts.link_down("a")
    assert two_hosts["c"].run([*connect, two_hosts["a"].address], check=False).returncode
    two_hosts["c"].run([*connect, two_hosts["b"].address])
    two_hosts.link_up("a")
    two_hosts["c"].run([*connect, two_hosts["a"].address])


@needs.tool("tc")
def test_a_limited_host_sends_no_faster_than_its_limit(two_hosts: Lab) -> None:
    def queues() -> str:
        return topology.tool("tc", "-n", topology.namespace(two_hosts.run_name, "a"), "qdisc")

    two_hosts.limit("a", "10mbit")
    assert "rate 10Mbit" in queues()
    two_hosts.limit("a", None)
    assert "tbf" not in queues()


def test_a_thread_can_spend_time_on_a_host(two_hosts: Lab) -> None:
    outside = os.readlink("/proc/thread-self/ns/net")
    with two_hosts["b"].inside():
        inode = two_hosts["b"].namespace.stat().st_ino
        assert os.readlink("/proc/thread-self/ns/net") == f"net:[{inode}]"
    assert os.readlink("/proc/thread-self/ns/net") == outside


def test_a_failing_command_shows_what_it_said(two_hosts: Lab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        two_hosts["a"].run(["sh", "-c", "echo no such thing >&2; exit 3"])
    assert caught.value.returncode == 3
    assert "no such thing" in caught.value.__notes__[0]


def test_closing_ends_everything_that_was_started_and_nothing_else() -> None:
    made = Lab(storage="tmpfs")
    made.up()
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        assert made["a"].root.is_mount()
        # In the foreground, left behind by a login, far from its parent in a namespace of its own.
        made["a"].popen(["sleep", "600"])
        made["a"].ssh(made["b"], "setsid sleep 600 >/dev/null 2>&1 </dev/null &")
        made["b"].run(["setsid", "-f", "unshare", "--net", "sleep", "600"], capture_output=False)
        with made["a"].inside():
            nobodys = subprocess.Popen(["sleep", "600"], env={})  # by its look
        assert len(processes.of_lab(made.directory, topology.inodes(made.run_name))) >= 6
        made.close()
        assert left_of(made) == []
        assert bystander.poll() is None
    finally:
        made.close()
        bystander.kill()
        bystander.wait()
    assert nobodys.wait(10) == -signal.SIGKILL


def test_a_reset_lab_is_as_new(two_hosts: Lab) -> None:
    (two_hosts["a"].root / "containers").mkdir()
    two_hosts["a"].popen(["sleep", "600"])
    two_hosts.link_down("b")
    two_hosts.reset()
    assert list(two_hosts["a"].root.iterdir()) == []
    assert two_hosts["a"].ssh(two_hosts["b"], "echo there").stdout == "there\n"


def test_a_set_up_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lab()
    real = Login.serve

    def serve(login: Login, name: str, *rest: object) -> object:
        if name == "b":
            raise LabError("no sshd today")
        return real(login, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Login, "serve", serve)
    with pytest.raises(LabError, match="no sshd today"), made:
        pytest.fail("it was up")
    assert left_of(made) == []


_PROGRAM = """
import subprocess, sys
from tests.lab import Lab
with Lab() as lab:
    lab["a"].popen(["sleep", "600"], stdout=subprocess.DEVNULL)
    print(lab.directory, flush=True)
    sys.stdin.read()
"""


def start_program(environment: dict[str, str]) -> tuple[subprocess.Popen[str], Lab]:
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=needs.REPO,
    )
    assert program.stdout is not None
    directory = program.stdout.readline().strip()
    assert directory, "the program ended early"
    return program, Lab.load(Path(directory))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_program_takes_its_lab_along(number: signal.Signals) -> None:
    program, made = start_program(dict(os.environ))
    program.send_signal(number)
    program.communicate()
    assert program.returncode not in (0, -signal.SIGKILL)
    assert left_of(made) == []


def test_what_a_killed_program_left_is_removed_by_the_next_lab() -> None:
    # Outside of a test run, as the demo is: in one, tests/sweep.py does it.
    environment = {k: v for k, v in os.environ.items() if k != runtag.VARIABLE}
    program, made = start_program(environment)
    try:
        remove_dead_labs()
        assert made.directory.exists(), "its owner lives"
        program.kill()
        program.communicate()
        assert left_of(made) != []
        remove_dead_labs()
        assert left_of(made) == []
    finally:
        program.kill()
        program.communicate()
        made.close()


def test_a_lab_by_hand_stays_until_it_is_taken_down() -> None:
    environment = {k: v for k, v in os.environ.items() if k != runtag.VARIABLE}

    def by_hand(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.lab", *words],
            env=environment,
            cwd=needs.REPO,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = by_hand("up").split(":")[0]
    made = Lab.load(Path(f"/tmp/ckpt-{name}"))
    try:
        assert json.loads((made.directory / "lab.json").read_text())["owner"] is None
        assert name in by_hand("status")
        out = by_hand("shell", "--lab", name, "a", "ssh", "-F", str(made.login.config), "b", "id")
        assert out.startswith("uid=0")
        by_hand("down", "--lab", name)
        assert left_of(made) == []
    finally:
        made.close()
    with pytest.raises(LabError):
        Lab.load(made.directory)


def test_only_root_gets_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab().up()
