"""The leak check sees what a test leaves, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leaks, runtag


def _leaked(kind: str, before: leaks.Snapshot) -> list[str]:
    return leaks.new_since(before, strict=False, patience=0).get(kind, [])


def test_an_open_descriptor_is_seen() -> None:
    before = leaks.look(leaks.LOCAL)
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert _leaked("fds", before) == [f"{fd} -> /dev/null"]
    finally:
        os.close(fd)
    assert leaks.new_since(before, strict=False) == {}


def test_a_running_thread_is_seen() -> None:
    before = leaks.look(leaks.LOCAL)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-running")
    thread.start()
    try:
        assert [line.split()[0] for line in _leaked("threads", before)] == ["left-running"]
    finally:
        stop.set()
        thread.join()
    assert leaks.new_since(before, strict=False) == {}


def test_a_child_is_seen_until_it_is_waited_for() -> None:
    before = leaks.look(leaks.LOCAL)
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert any(line.startswith(f"{process.pid} ") for line in _leaked("children", before))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Killed, yet a zombie.
        assert any(line.startswith(f"{process.pid} ") for line in _leaked("children", before))
    finally:
        process.kill()
        process.wait()
    assert leaks.new_since(before, strict=False) == {}


def test_a_process_that_left_the_family_is_seen() -> None:
    before = leaks.look(["processes"])
    # The shell ends at once; its child goes on in a session of its own.
    started = subprocess.run(
        ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True
    )
    pid = int(started.stdout)
    try:
        assert any(line.startswith(f"{pid} ") for line in _leaked("processes", before))
    finally:
        os.kill(pid, 9)
    assert leaks.new_since(before, strict=False) == {}


def test_a_late_end_is_waited_for() -> None:
    before = leaks.look(["threads"])
    seen_once = threading.Event()
    thread = threading.Thread(target=seen_once.wait)
    thread.start()
    looks: list[int] = []

    def look_and_let_go() -> frozenset[str]:
        looks.append(len(looks))
        names = frozenset(leaks._threads())
        seen_once.set()
        return names

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(leaks._LOOK, "threads", look_and_let_go)
        assert leaks.new_since(before, strict=False) == {}
    thread.join()
    assert len(looks) >= 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leaks, "PLACES", ((str(tmp_path), "ckpt*"),))
    return tmp_path


def test_what_another_run_makes_at_the_same_time_is_not_blamed_on_this_one(place: Path) -> None:
    before = leaks.look(["files"])
    (place / "ckpt-t1-1").mkdir()
    mine = place / f"ckpt-{runtag.TAG}-1"
    mine.mkdir()
    assert leaks.new_since(before, strict=False, patience=0) == {"files": [str(mine)]}


def test_on_a_machine_of_our_own_anything_new_is_blamed(place: Path) -> None:
    before = leaks.look(["files"])
    (place / "ckpt-unnamed").mkdir()
    found = leaks.new_since(before, strict=True, patience=0)
    assert found == {"files": [str(place / "ckpt-unnamed")]}


def test_only_the_root_mount_tells_whose_a_process_is() -> None:
    root = "20 1 0:30 / / rw - overlay overlay rw,upperdir=/tmp/ckpt-t7-1/upper"
    other = "21 20 0:31 / /tmp/ckpt-t8-1/mnt rw - tmpfs tmpfs rw"
    assert leaks.root_mount(f"{root}\n{other}\n") == root


LEAKY = """
import os, pytest, threading

def test_leaks_a_descriptor():
    os.open("/dev/null", os.O_RDONLY)

@pytest.mark.may_leak("fds")
def test_is_excused():
    os.open("/dev/null", os.O_RDONLY)

def test_leaks_nothing():
    os.close(os.open("/dev/null", os.O_RDONLY))

def test_root_is_taken_away(ckpt_root):
    (ckpt_root / "file").write_text("x")
    print("ROOT", ckpt_root)
"""

SKIPPING = """
import pytest
from tests import needs

def test_unlisted_reason():
    pytest.skip("did not feel like it")

@needs.tool("a-program-that-nobody-has")
def test_missing_tool():
    raise AssertionError("ran without its tool")

@pytest.mark.skip(reason="cgroup_v2: a listed one")
def test_listed_reason():
    pass

@pytest.mark.xfail(reason="known")
def test_known_bug():
    raise AssertionError
"""

Inner = Callable[..., "tuple[dict[str, int], str]"]


@pytest.fixture
def inner_run(tmp_path: Path) -> Inner:
    """Run tests under the project's conftest in a pytest of their own."""

    def run(source: str, **environment: str) -> tuple[dict[str, int], str]:
        (tmp_path / "test_inner.py").write_text(source)
        root = Path(runtag.__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml"]
            + ["--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path)],
            cwd=root,
            env={**os.environ, "CI": "", **environment},
            capture_output=True,
            text=True,
        )
        closing = done.stdout.splitlines()[-1].strip("= ").rpartition(" in ")[0]
        words = [part.split() for part in closing.split(", ")]
        return {word: int(count) for count, word in words}, done.stdout

    return run


def test_a_test_that_leaks_does_not_pass(inner_run: Inner) -> None:
    counts, output = inner_run(LEAKY)
    assert counts == {"passed": 4, "error": 1}, output
    assert "ERROR at teardown of test_leaks_a_descriptor" in output
    assert "/dev/null" in output


def test_a_skip_is_a_skip_on_a_developers_machine(inner_run: Inner) -> None:
    counts, output = inner_run(SKIPPING)
    assert counts == {"skipped": 3, "xfailed": 1}, output
    assert "tool a-program-that-nobody-has: not installed: a-program-that-nobody-has" in output


def test_ci_allows_only_listed_reasons_to_skip(inner_run: Inner) -> None:
    counts, output = inner_run(SKIPPING, CI="true")
    assert counts == {"failed": 1, "error": 1, "skipped": 1, "xfailed": 1}, output
    assert "does not allow for this reason: did not feel like it" in output
