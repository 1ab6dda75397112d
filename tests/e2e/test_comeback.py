"""What recover brings back of containers that a reboot ended: anew, or as their newest checkpoint has them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box, until

pytestmark = [*needs.CONTAINERS, needs.criu, needs.pycriu]

_COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/written; sleep 0.05; done"
_FROM_CHECKPOINT = ("--restart", "always", "--label", "org.ckpt.recover=checkpoint")


def _count(box: Box, name: str = "c") -> int:
    return int(box("logs", "-n", "1", name).strip() or 0)


def _reboot(box: Box, name: str = "c") -> None:
    """As seen from its container: monitor and processes are gone without a word."""
    pid = box.one(name)["pid"]
    monitor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    until(lambda: box.one(name)["state"] == "lost")


@pytest.fixture
def counting(box: Box) -> Box:
    """Container c, which counts, with checkpoint `first`."""
    box.up("c", *_FROM_CHECKPOINT, args=["sh", "-c", _COUNT])
    until(lambda: _count(box) > 3)
    box("dump", "c", "--leave-running", "--as", "first")
    return box


def test_the_newest_checkpoint_is_where_it_goes_on(counting: Box) -> None:
    box = counting
    until(lambda: _count(box) > 20)
    box("dump", "c", "--leave-running", "--as", "second")
    at = _count(box)
    _reboot(box)
    assert "restored from checkpoint second" in box("recover")
    assert box.names() == ["c"]
    until(lambda: _count(box) > at)
    lines = [int(line) for line in box("logs", "c").split()]
    assert sorted(set(lines)) == list(range(lines[0], lines[-1] + 1)), "it counted anew"
    assert int(box("exec", "c", "cat", "/written")) > 20


def test_without_a_checkpoint_it_starts_anew(box: Box) -> None:
    box.up("c", *_FROM_CHECKPOINT)
    _reboot(box)
    assert "there is no checkpoint of it" in box("recover")
    assert box.one("c")["state"] == "running"


def test_a_damaged_checkpoint_costs_the_memory_and_not_the_container(counting: Box) -> None:
    box = counting
    images = box.root / "checkpoints/first/criu"
    largest = max(images.iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    _reboot(box)
    assert "could not be restored" in box("recover")
    assert {name: box.one(name)["state"] for name in box.names()} == {"c": "running"}


def test_a_comeback_that_was_cut_off_is_begun_again(counting: Box) -> None:
    box = counting
    identity = box.one("c")["id"]
    box("stop", "c")
    box("rename", "c", "c.aside")
    box("recover")
    assert {name: box.one(name)["state"] for name in box.names()} == {"c": "running"}
    assert box.one("c")["id"] != identity, "it wasn't restored"


def test_one_that_cannot_start_keeps_no_other_from_coming_back(box: Box) -> None:
    box.up("a", "--restart", "always", "--network", "none")
    box.up("b", "--restart", "always", "--network", "none")
    _reboot(box, "a")
    _reboot(box, "b")
    record = box.root / "containers" / str(box.one("a")["id"]) / "record.json"
    text = record.read_text()
    layer = next((box.root / "layers").glob("[0-9a-f]*")).name
    record.write_text(text.replace(layer, "0" * len(layer)))
    said = box("recover")
    assert "could not be started again" in said
    assert box.one("b")["state"] == "running"
