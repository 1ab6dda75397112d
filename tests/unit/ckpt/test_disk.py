"""The limit of a container's disk: how it is written, and what is refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt.ops import disk
from runtime.errors import BadInput, Unsupported
from runtime.quota import project
from runtime.spec import DISK, Options, from_flags


def spec(text: str) -> dict[str, Any]:
    return {"annotations": {DISK: text}}


def test_flags_and_spec_agree() -> None:
    assert disk.limit_of(from_flags(Options(args=("true",), disk=3 << 20))) == 3 << 20
    assert disk.limit_of(from_flags(Options(args=("true",), disk=-1))) is None
    assert disk.limit_of(from_flags(Options(args=("true",)))) is None


@pytest.mark.parametrize("text", ["", "5m", "0", "-2", "1023", "9223372036854775808", "٣٣٣٣٣٣٣٣"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="number of bytes from 1048576 on"):
        disk.limit_of(spec(text))


def test_a_container_that_could_leave_its_project_gets_no_limit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="user namespace"):
        disk.check(tmp_path, spec("2000000"), user_namespace=False)
    disk.check(tmp_path, spec("-1"), user_namespace=False)


@pytest.mark.parametrize(
    ("kind", "found", "hint"),
    [
        ("ext4", project.NOT_COUNTED, "tune2fs -O project"),
        ("xfs", project.NOT_COUNTED, "rootflags=prjquota"),
        ("btrfs", project.NOT_COUNTED, "on ext4 or XFS"),
        ("ext4", project.NOT_ENFORCED, "mount it with -o prjquota"),
        ("ext4", project.CLOSED, "as root of the host itself"),
    ],
)
def test_a_refusal_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: str, found: str, hint: str
) -> None:
    monkeypatch.setattr(project, "problem", lambda _: found)
    monkeypatch.setattr(disk, "file_system", lambda _: kind)
    with pytest.raises(Unsupported) as refused:
        disk.check(Path("/here"), spec("2000000"), user_namespace=True)
    assert refused.value.why == f"the file system of /here ({kind}) has {found}"
    assert hint in refused.value.hint
