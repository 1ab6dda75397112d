"""What killed processes leave beside what they published, and what must not be taken for it."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt.ops import journal
from runtime.files import sweep_unpublished
from transport.protocol import State


def dead() -> int:
    """The id of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_only_temporary_files_of_processes_that_are_gone_go(tmp_path: Path) -> None:
    gone, mine = f".record.json.{dead()}.new", f".record.json.{os.getpid()}.new"
    for name in (gone, mine, "record.json", ".hidden.new", "new"):
        (tmp_path / name).touch()
    assert sweep_unpublished(tmp_path) == [gone]
    assert sorted(os.listdir(tmp_path)) == sorted([mine, "record.json", ".hidden.new", "new"])
    assert sweep_unpublished(tmp_path / "nowhere") == []


def test_a_lock_of_a_migration_that_never_began_goes_and_a_held_one_stays(tmp_path: Path) -> None:
    def made(identity: str) -> journal.Journal:
        entry = journal.Entry(identity, "source", "c", "web", "b", str(State.PLANNED))
        return journal.Journal(tmp_path, entry)

    made("left-00000001").close()
    written = made("kept-00000002")
    written.write(State.PLANNED)
    written.close()
    with made("held-00000003"):
        assert journal.sweep(tmp_path) == ["left-00000001.source.lock"]
        assert sorted(os.listdir(tmp_path)) == [
            "held-00000003.source.lock",
            "kept-00000002.source.journal",
            "kept-00000002.source.lock",
        ]
