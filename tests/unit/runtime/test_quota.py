"""Project quotas: what is asked of the kernel, and how a number is claimed where nobody gives numbers out."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import syscalls
from runtime.errors import Conflict, NotFound
from runtime.quota import kernel, project
from runtime.quota.kernel import Quota


class FileSystem:
    """One with project quotas, as kernel.py sees it: directories by their descriptor's path."""

    def __init__(self) -> None:
        self.projects: dict[int, int] = {}
        self.limits: dict[int, int] = {}
        self.flags = (True, True)
        self.meanwhile: Iterator[int] = iter(())
        """Projects into which somebody else puts a directory, one each time that we do."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("state", "quota_of", "set_limit", "project_of", "set_project"):
            monkeypatch.setattr(kernel, name, getattr(self, name))

    def state(self, fd: int) -> tuple[bool, bool]:
        return self.flags

    def quota_of(self, fd: int, number: int) -> Quota:
        files = list(self.projects.values()).count(number)
        return Quota(self.limits.get(number, 0), files * 4096, files)

    def set_limit(self, fd: int, number: int, limit: int) -> None:
        self.limits[number] = limit

    def project_of(self, fd: int) -> int:
        return self.projects.get(_inode(fd), 0)

    def set_project(self, fd: int, number: int) -> None:
        self.projects[_inode(fd)] = number
        for other in self.meanwhile:
            self.projects[-other] = other
            break


def _inode(fd: int) -> int:
    return Path(f"/proc/self/fd/{fd}").stat().st_ino


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    made = FileSystem()
    made.install(monkeypatch)
    return made


def numbers(monkeypatch: pytest.MonkeyPatch, *wanted: int) -> None:
    """What is drawn next."""
    drawn = iter(wanted)
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(drawn))


def test_a_number_with_files_or_with_a_limit_is_somebody_elses(
    disk: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(monkeypatch, 5, 6, 7)
    disk.projects[-1] = project.FIRST + 5
    disk.limits[project.FIRST + 6] = 1 << 20
    assert project.claim(tmp_path) == project.FIRST + 7
    assert project.of(tmp_path) == project.FIRST + 7


def test_who_claims_the_same_number_at_the_same_time_takes_another(
    disk: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(monkeypatch, 5, 6)
    disk.meanwhile = iter([project.FIRST + 5])
    assert project.claim(tmp_path) == project.FIRST + 6


def test_when_every_number_is_taken_the_search_ends(
    disk: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: 5)
    disk.projects[-1] = project.FIRST + 5
    with pytest.raises(Conflict, match="every number is taken"):
        project.claim(tmp_path)


def test_a_project_of_somebody_elses_choice_is_not_ours(disk: FileSystem, tmp_path: Path) -> None:
    disk.projects[tmp_path.stat().st_ino] = 1000
    assert project.of(tmp_path) == 0


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((True, True), ""),
        ((True, False), project.NOT_ENFORCED),
        ((False, False), project.NOT_COUNTED),
    ],
)
def test_a_file_system_that_counts_but_does_not_enforce_is_told_apart(
    disk: FileSystem, tmp_path: Path, flags: tuple[bool, bool], why: str
) -> None:
    disk.flags = flags
    assert project.problem(tmp_path) == why


def test_a_limit_is_set_in_blocks_rounded_up_and_leaves_the_number_of_files_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, bytes]] = []
    monkeypatch.setattr(
        syscalls,
        "quotactl_fd",
        lambda fd, command, number, data: asked.append((command, number, data)),
    )
    kernel.set_limit(3, 77, 10241)
    ((command, number, data),) = asked
    assert (command, number) == (0x80000802, 77)
    assert len(data) == 72 and struct.unpack("=8QI4x", data) == (11, *(0,) * 7, 1)


def test_what_a_project_takes_is_read_from_the_kernels_structure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = struct.pack("=8QI4x", 2048, 0, 5000, 0, 0, 3, 0, 0, 63)
    monkeypatch.setattr(syscalls, "quotactl_fd", lambda *_: answer)
    assert kernel.quota_of(3, 77) == Quota(limit=2 << 20, used=5000, files=3)


def test_a_project_that_the_file_system_never_heard_of_has_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unheard(*_: object) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(syscalls, "quotactl_fd", unheard)
    assert kernel.quota_of(3, 77) == Quota(0, 0, 0)


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no-such-directory"):
        project.problem(tmp_path / "no-such-directory")
