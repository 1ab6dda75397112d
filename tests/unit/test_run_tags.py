"""A run's tag is found in names, and tells whether its owner lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests import runtag


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("/tmp/ckpt-t12-1", {"t12"}),
        ("ckpt-t12", {"t12"}),
        ("/tmp/ckpt-t12-1/upper:/tmp/ckpt-t3-2/lower", {"t12", "t3"}),
        ("/tmp/test12/ckpt", set()),
        ("ckpt-t12x", set()),
        ("ckpt-at12", set()),
        ("", set()),
    ],
)
def test_a_tag_is_found_only_as_a_word_of_its_own(text: str, tags: set[str]) -> None:
    assert runtag.tags_in(text) == tags


def test_a_longer_tag_is_not_taken_for_a_shorter_one() -> None:
    assert not runtag.carries("/tmp/ckpt-t123-1", "t12")


def test_this_run_is_alive() -> None:
    assert runtag.is_alive(runtag.TAG)


def test_a_run_whose_process_is_no_pytest_is_dead() -> None:
    assert not runtag.is_alive("t1")


def test_processes_inherit_the_tag() -> None:
    assert os.environ[runtag.VARIABLE] == runtag.TAG


def test_a_worker_is_alive_although_its_command_line_does_not_say_pytest() -> None:
    program = "import subprocess; w = subprocess.Popen(['sleep', '30']); print(w.pid, flush=True)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{program}; w.wait()", "pytest"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        assert runtag.is_alive(f"t{worker}")
    finally:
        os.kill(worker, signal.SIGKILL)
        parent.communicate()
