"""A record that is changed in place is always one that was written, and the last whose write was whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import slots
from runtime.errors import BadInput, NotFound, SystemFault

record = st.binary(max_size=300).filter(lambda data: b"\n" not in data)


@given(st.lists(record, min_size=1, max_size=6))
def test_the_last_record_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("slots") / "record"
    slots.create(path, records[0])
    for data in records[1:]:
        slots.write(path, data)
    assert slots.read(path) == records[-1]
    assert path.stat().st_size == 2 * slots.SLOT


@given(st.data(), record, record, st.integers(0, 5))
def test_a_write_that_is_cut_off_leaves_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, old: bytes, new: bytes, more: int
) -> None:
    path = tmp_path_factory.mktemp("slots") / "record"
    slots.create(path, b"first")
    for _ in range(more):
        slots.write(path, b"then")
    slots.write(path, old)
    before = path.read_bytes()
    slots.write(path, new)
    after = path.read_bytes()
    # Sectors of 512 bytes reach the disk or don't, in any order.
    sectors = range(0, len(after), 512)
    arrived = data.draw(st.sets(st.sampled_from(sectors)))
    path.write_bytes(
        b"".join((after if at in arrived else before)[at : at + 512] for at in sectors)
    )
    assert slots.read(path) in (old, new)
    slots.write(path, b"goes on")
    assert slots.read(path) == b"goes on"


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with pytest.raises(FileNotFoundError):
        slots.read(path)
    with pytest.raises(NotFound):
        slots.write(path, b"x")
    assert not path.exists()
    for content in (b"", b"garbage", b"0" * 8192, b"%016x " % 7 + b"0" * 32 + b" x\n"):
        path.write_bytes(content)
        with pytest.raises(SystemFault):
            slots.read(path)
    for data in (b"two\nlines", bytes(slots.SLOT)):
        with pytest.raises(BadInput):
            slots.create(tmp_path / "other", data)
    assert not (tmp_path / "other").exists()


def test_a_flush_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record"
    slots.create(path, b"before")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(SystemFault, match="Input/output error"):
            slots.write(path, b"after")
    assert slots.read(path) == b"before"
