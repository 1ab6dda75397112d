"""`ckpt doctor` on this machine, and at another host over SSH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.lab.lab import Lab
from tests.patience import patient

pytestmark = [needs.root, needs.criu]


def doctor(root: Path, *words: str, **env: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "ckpt", "--root", str(root), "doctor", "--json", *words],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def by_name(answer: dict) -> dict[str, dict]:
    return {row["name"]: row for row in answer["rows"]}


def machine_state() -> tuple[str, list[str], list[str]]:
    """What a probe that doesn't clean up would change."""
    cgroups = [str(p) for p in Path("/sys/fs/cgroup").glob("**/ckpt-doctor-*")]
    mounts = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if "ckpt-doctor" in line
    ]
    return Path("/proc/sys/fs/pipe-max-size").read_text(), cgroups, mounts


@needs.compiler
@needs.pycriu
def test_where_the_other_tests_run_the_doctor_finds_nothing_bad(ckpt_root):
    before = machine_state()
    status, answer = doctor(ckpt_root)
    assert [row for row in answer["rows"] if row["level"] == "bad"] == []
    assert (status, answer["ok"]) == (0, True)
    assert machine_state() == before
    assert list(ckpt_root.iterdir()) == [], "looking made something"


def test_every_weakness_comes_with_consequence_and_fix(ckpt_root):
    _, answer = doctor(
        ckpt_root, CKPT_CRIU="/does/not/exist", CKPT_KNOWN_HOSTS=str(ckpt_root / "none")
    )
    weak = [row for row in answer["rows"] if row["level"] != "ok"]
    assert {"CRIU", "known_hosts"} <= {row["name"] for row in weak}
    assert all(row["consequence"] for row in weak)
    assert all(row["fix"] for row in weak if row["value"] != "unknown")


def test_without_criu_the_verdict_is_bad_and_so_is_the_exit_code(ckpt_root):
    status, answer = doctor(ckpt_root, CKPT_CRIU="/does/not/exist")
    assert status == 1
    assert not answer["ok"]
    assert by_name(answer)["CRIU"]["level"] == "bad"


def test_fix_makes_what_is_missing_and_says_what_it_did(ckpt_root):
    ckpt_root.chmod(0o711)  # another user must get through: that is a row of its own
    root = ckpt_root / "deeper" / "root"
    _, before = doctor(root)
    assert by_name(before)["directories"]["repair"] == "directories"
    pipe = Path("/proc/sys/fs/pipe-max-size")
    old = pipe.read_text()
    try:
        _, after = doctor(root, "--fix")
    finally:
        pipe.write_text(old)
    assert [c["worked"] for c in after["fixed"] if c["repair"] == "directories"] == [True]
    assert by_name(after)["directories"]["repair"] == ""
    assert (root / "containers").is_dir()
    if by_name(before)["pipe size"]["level"] == "warn":
        assert by_name(after)["pipe size"]["level"] == "ok"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("a", "b"), ()) as lab:
        yield lab


@needs.sshd
def test_another_host_is_examined_over_ssh_by_itself(lab):
    done = lab["a"].run(["ckpt", "doctor", "b", "--json"], check=False)
    answer = json.loads(done.stdout)
    rows = by_name(answer)
    assert done.returncode == 0, done.stdout
    assert rows["disk"]["value"].startswith(str(lab["b"].root))
    assert rows["SSH"]["level"] == rows["clock offset"]["level"] == "ok"


@needs.sshd
def test_an_unknown_host_is_an_error_of_its_own_and_not_a_table(lab):
    done = lab["a"].run(["ckpt", "doctor", "nobody@192.0.2.1:1", "--json"], check=False)
    assert done.returncode in (30, 33)
    assert done.stdout == ""
    assert json.loads(done.stderr)["exit_code"] == done.returncode


@needs.sshd
def test_a_host_that_talks_nonsense_is_told_from_a_sick_one(lab):
    done = lab["a"].run(
        ["ckpt", "doctor", "b", "--json"], check=False, env={"CKPT_REMOTE": "echo hello"}
    )
    assert done.returncode == 38, done.stderr
    assert "hello" in json.loads(done.stderr)["why"]
