"""`dump -o FILE`: the file is there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.ops.dump import whole_file


def test_what_was_written_has_its_name_when_the_block_ends_well(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as fd:
        os.write(fd, b"content")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_was_there_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as fd:
        os.write(fd, b"half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    with whole_file(tmp_path / "file") as fd:
        os.write(fd, b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
