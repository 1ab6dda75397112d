"""What is compiled once: found again while its source and what that includes are the same."""

from __future__ import annotations

from pathlib import Path

from runtime import freestanding
from tests import needs


@needs.tool("cc")
def test_a_change_of_what_it_includes_makes_another_program(tmp_path: Path) -> None:
    header, source = tmp_path / "common.h", tmp_path / "source.c"
    header.write_text("#define NUMBER 1\n")
    (tmp_path / "between.h").write_text('#include "common.h"\n')
    source.write_text('#include "between.h"\nint number(void) { return NUMBER; }\n')
    first = freestanding.library(source, tmp_path / "cache")
    assert freestanding.library(source, tmp_path / "cache") == first
    header.write_text("#define NUMBER 2\n")
    second = freestanding.library(source, tmp_path / "cache")
    assert second != first and second.read_bytes() != first.read_bytes()
