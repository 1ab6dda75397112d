"""Compiled filters are kept, and what is kept is never trusted blindly."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import BadInput
from runtime.security.compiled import program
from runtime.security.seccomp import compile_profile

PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
}


def test_what_is_kept_is_what_would_be_compiled(tmp_path: Path) -> None:
    fresh = compile_profile(PROFILE)
    for _ in range(2):
        assert program(PROFILE, tmp_path) == (fresh.program, fresh.flags)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"program": "00", "flags": 0, "digest": "x"}']
)
def test_a_damaged_file_is_compiled_anew(tmp_path: Path, damage: bytes) -> None:
    right = program(PROFILE, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert program(PROFILE, tmp_path) == right
    assert path.read_bytes() != damage


def test_another_profile_is_another_file(tmp_path: Path) -> None:
    program(PROFILE, tmp_path)
    program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_wrong_profile_is_refused_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(BadInput):
            program({"defaultAction": "SCMP_ACT_NONSENSE"}, tmp_path)


def test_where_nothing_can_be_kept_it_works_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert program(PROFILE, blocked / "below")[0]
