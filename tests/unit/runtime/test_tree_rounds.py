"""A copy kept up to date round after round is equal to its source (as any user; owners: e2e)."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import threading
from pathlib import Path

import pytest

from runtime import tree


def transfer(sync, target: Path, **options):
    """One round through a pipe; returns what both ends say."""
    reader, writer = os.pipe()
    result = {}

    def take() -> None:
        try:
            result["received"] = tree.receive(reader, str(target))
        except BaseException as error:
            result["error"] = error
        finally:
            os.close(reader)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        sent = sync.round(writer, **options)
    finally:
        os.close(writer)
        thread.join()
    if "error" in result:
        raise result["error"]
    return sent, result["received"]


@pytest.fixture
def both(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target


def assert_equal(source: Path, target: Path) -> None:
    assert tree.tree_digest(str(source)) == tree.tree_digest(str(target))


def furnish(source: Path) -> None:
    (source / "plain").write_bytes(b"hello")
    (source / "empty").touch()
    (source / "deep/er/est").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(300_000))
    (source / "link").symlink_to("/nowhere/at/all")
    os.link(source / "plain", source / "deep/hard")
    os.mkfifo(source / "fifo")
    (source / b"not utf-8 \xff".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    (source / "setuid").write_bytes(b"#!")
    (source / "setuid").chmod(0o4755)
    (source / "deep").chmod(0o1770)
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(source, os.O_PATH)
        bound.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with open(source / "sparse", "wb") as sparse:
        sparse.seek(30_000_000)
        sparse.write(b"data in the middle")
        sparse.truncate(70_000_000)
    with contextlib.suppress(OSError):
        os.setxattr(source / "plain", "user.note", b"a\0b")
    os.utime(source / "plain", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "deep", ns=(1, -5_000_000_001))


def test_everything_survives_the_first_round(both):
    source, target = both
    furnish(source)
    sent, received = transfer(tree.Synchroniser(str(source)), target)
    assert_equal(source, target)
    assert (sent.entries, sent.digest, sent.bytes) == (
        received.entries,
        received.digest,
        received.bytes,
    )
    assert sent.missed == ()
    assert (target / "plain").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (target / "deep").stat().st_mtime_ns == -5_000_000_001
    assert (target / "plain").stat().st_ino == (target / "deep/hard").stat().st_ino
    assert (target / "setuid").stat().st_mode & 0o7777 == 0o4755


def test_holes_stay_holes(both):
    source, target = both
    furnish(source)
    sent, _ = transfer(tree.Synchroniser(str(source)), target)
    assert (target / "sparse").stat().st_size == 70_000_000
    assert (target / "sparse").stat().st_blocks * 512 < 1_000_000
    assert sent.bytes < 2_000_000


def test_an_unchanged_tree_sends_nothing(both):
    source, target = both
    furnish(source)
    sync = tree.Synchroniser(str(source))
    transfer(sync, target)
    # Files as young as the snapshot are sent once more; only their age settles it.
    old = tree.snapshot(str(source))
    aged = tree.Index(old.entries, old.taken_ns + 1_000_000_000)
    assert not tree.diff(aged, tree.snapshot(str(source)))


def test_a_second_write_within_the_clock_s_tick_is_found(both):
    source, _ = both
    file = source / "f"
    file.write_bytes(b"1")
    before = tree.snapshot(str(source))
    # What a second write within the same tick leaves: other bytes, every stamp the same.
    after = tree.snapshot(str(source))
    assert (b"f", False) in tree.diff(before, after).changed


def change_replace_with_directory(source: Path) -> None:
    (source / "plain").unlink()
    (source / "plain").mkdir()
    (source / "plain/inside").write_bytes(b"in")


def change_directory_to_file(source: Path) -> None:
    (source / "deep/er/file").unlink()
    (source / "deep/er/est").rmdir()
    (source / "deep/er").rmdir()
    (source / "deep/er").write_bytes(b"was a directory")


def change_hard_link_split(source: Path) -> None:
    (source / "deep/hard").unlink()
    (source / "deep/hard").write_bytes(b"on its own")


def change_hard_link_more(source: Path) -> None:
    os.link(source / "plain", source / "zzz")
    os.link(source / "plain", source / "aaa")


def change_swap_by_rename(source: Path) -> None:
    (source / "setuid").rename(source / "tmp")
    (source / "plain").rename(source / "setuid")
    (source / "tmp").rename(source / "plain")


def change_through_a_hard_link(source: Path) -> None:
    with open(source / "deep/hard", "r+b") as file:
        file.write(b"J")


def change_truncate_and_grow(source: Path) -> None:
    os.truncate(source / "sparse", 40_000_000)
    os.truncate(source / "plain", 1)
    os.truncate(source / "empty", 5_000_000)


def change_hide_by_utime(source: Path) -> None:
    st = (source / "deep/er/file").stat()
    with open(source / "deep/er/file", "r+b") as file:
        file.write(b"changed")
    os.utime(source / "deep/er/file", ns=(st.st_atime_ns, st.st_mtime_ns))


def change_metadata(source: Path) -> None:
    (source / "plain").chmod(0o640)
    (source / "deep").chmod(0o700)
    (source / "fifo").chmod(0o600)
    with contextlib.suppress(OSError):
        os.setxattr(source / "deep", "user.x", b"y")
        os.removexattr(source / "plain", "user.note")


def change_directory_rename(source: Path) -> None:
    (source / "deep").rename(source / "renamed")


def change_types(source: Path) -> None:
    (source / "link").unlink()
    os.mkfifo(source / "link")
    (source / "fifo").unlink()
    (source / "fifo").symlink_to("plain")
    (source / "socket").unlink()
    (source / "socket").write_bytes(b"now a file")


def change_blocks_of_a_large_file(source: Path) -> None:
    with open(source / "sparse", "r+b") as file:
        file.seek(30_000_005)
        file.write(b"other")
        file.seek(50_000_000)
        file.write(os.urandom(200_000))


CHANGES = [value for name, value in list(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.removeprefix("change_"))
def test_a_change_arrives(both, change):
    source, target = both
    furnish(source)
    sync = tree.Synchroniser(str(source))
    transfer(sync, target)
    change(source)
    transfer(sync, target, frozen=True)
    assert_equal(source, target)


def test_a_few_changed_blocks_of_a_large_file_are_all_that_is_sent(both):
    source, target = both
    file = source / "database"
    file.write_bytes(os.urandom(20_000_000))
    sync = tree.Synchroniser(str(source))
    transfer(sync, target)
    inode = (target / "database").stat().st_ino
    with open(file, "r+b") as handle:
        handle.seek(7_000_000)
        handle.write(b"changed")
        handle.truncate(20_300_000)
    sent, _ = transfer(sync, target, frozen=True)
    assert_equal(source, target)
    assert sent.data_bytes < 500_000
    assert (target / "database").stat().st_ino == inode


def test_a_hole_punched_into_a_large_file_arrives(both):
    from runtime.holes import punch_hole

    source, target = both
    (source / "f").write_bytes(os.urandom(8_000_000))
    sync = tree.Synchroniser(str(source))
    transfer(sync, target)
    fd = os.open(source / "f", os.O_RDWR)
    punch_hole(fd, 1_000_000, 3_000_000)
    os.close(fd)
    transfer(sync, target, frozen=True)
    assert_equal(source, target)
    assert (target / "f").stat().st_blocks <= (source / "f").stat().st_blocks + 512


def test_a_write_through_a_mapping_after_a_live_round_is_found(both):
    source, target = both
    (source / "f").write_bytes(bytes(100_000))
    sync = tree.Synchroniser(str(source))
    with open(source / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[10] = 1  # the page is dirty from now on
        transfer(sync, target)
        mapping[11] = 2
        suspects = tree.below(tree.shared_writable(os.getpid()), str(source))
        assert suspects == {b"f"}
        transfer(sync, target, frozen=True, suspects=suspects)
    assert (target / "f").read_bytes()[10:12] == b"\1\2"
    assert_equal(source, target)


def test_rounds_under_fire_end_with_equal_trees(both):
    """Files appear, change, move and vanish while the rounds run; the last one is quiet."""
    source, target = both
    chance = random.Random(7)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            where = source / f"d{chance.randrange(4)}"
            file = where / f"f{chance.randrange(6)}"
            with contextlib.suppress(OSError):
                match chance.randrange(9):
                    case 0:
                        where.mkdir()
                    case 1:
                        where.rename(source / f"d{chance.randrange(4)}")
                    case 2:
                        file.unlink()
                    case 3:
                        os.link(file, where / f"f{chance.randrange(6)}")
                    case 4:
                        file.symlink_to("elsewhere")
                    case 5:
                        os.truncate(file, chance.randrange(4_000_000))
                    case 6:
                        file.rename(where / f"f{chance.randrange(6)}")
                    case 7:
                        where.rmdir()
                    case _:
                        with open(file, "ab") as handle:
                            handle.write(chance.randbytes(chance.randrange(600_000)))

    churner = threading.Thread(target=churn)
    churner.start()
    sync = tree.Synchroniser(str(source))
    try:
        for _ in range(25):
            transfer(sync, target)
    finally:
        stop.set()
        churner.join()
    sent, _ = transfer(sync, target, frozen=True)
    assert_equal(source, target)
    assert sent.missed == ()
    assert sent.unstable == ()


def test_a_symlink_that_takes_a_directory_s_place_is_not_followed(both, tmp_path):
    source, target = both
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (source / "d").mkdir()
    (source / "d/secret").write_bytes(b"public")
    seen = tree.snapshot(str(source))
    (source / "d/secret").unlink()
    (source / "d").rmdir()
    (source / "d").symlink_to(outside)
    reader, writer = os.pipe()
    sent = tree.send(str(source), tree.diff(tree.EMPTY, seen), writer)
    os.close(writer)
    tree.receive(reader, str(target))
    os.close(reader)
    assert set(sent.missed) == {b"d", b"d/secret"}
    assert list(target.iterdir()) == []


def test_a_frozen_round_says_when_something_changes_after_all(both):
    from runtime.errors import Conflict

    source, _ = both
    (source / "f").write_bytes(b"x")
    seen = tree.snapshot(str(source))
    (source / "f").unlink()
    with open(os.devnull, "wb") as sink, pytest.raises(Conflict, match="frozen"):
        tree.send(str(source), tree.diff(tree.EMPTY, seen), sink.fileno(), frozen=True)


def test_a_reader_that_goes_away_is_one_clear_error(both):
    from runtime.errors import RuntimeFault

    source, _ = both
    furnish(source)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(RuntimeFault, match="sending the tree .*Broken pipe"):
            tree.Synchroniser(str(source)).round(writer)
    finally:
        os.close(writer)


def test_the_digest_notices_each_difference(tmp_path):
    def build(where: Path) -> Path:
        where.mkdir()
        furnish(where)
        for path in sorted(where.rglob("*"), reverse=True):
            os.utime(path, ns=(5, 5), follow_symlinks=False)
        (where / "deep/er/file").write_bytes(b"fixed")
        os.utime(where / "deep/er/file", ns=(5, 5))
        os.utime(where, ns=(5, 5))
        return where

    reference = tree.tree_digest(str(build(tmp_path / "reference")))
    assert tree.tree_digest(str(build(tmp_path / "same"))) == reference
    differences = {
        "mode": lambda w: (w / "plain").chmod(0o600),
        "time": lambda w: os.utime(w / "empty", ns=(6, 6)),
        "size": lambda w: (os.truncate(w / "empty", 1), os.utime(w / "empty", ns=(5, 5))),
        "content": lambda w: (
            (w / "deep/er/file").write_bytes(b"Fixed"),
            os.utime(w / "deep/er/file", ns=(5, 5)),
        ),
        "target": lambda w: (
            (w / "link").unlink(),
            (w / "link").symlink_to("/nowhere/at/alm"),
            os.utime(w / "link", ns=(5, 5), follow_symlinks=False),
            os.utime(w, ns=(5, 5)),
        ),
        "hard link": lambda w: (
            (w / "deep/hard").unlink(),
            (w / "deep/hard").write_bytes(b"hello"),
            os.utime(w / "deep/hard", ns=(5, 5)),
            os.utime(w / "deep", ns=(5, 5)),
        ),
    }
    for number, (name, differ) in enumerate(differences.items()):
        where = build(tmp_path / f"other{number}")
        differ(where)
        assert tree.tree_digest(str(where)) != reference, name


def test_holes_don_t_count_in_the_digest(tmp_path):
    for name in ("sparse", "full"):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "f", "wb") as file:
            if name == "full":
                file.write(bytes(1_500_000))
            file.truncate(1_500_000)
        os.utime(tmp_path / name / "f", ns=(1, 1))
        os.utime(tmp_path / name, ns=(1, 1))
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    assert (sparse / "f").stat().st_blocks < (full / "f").stat().st_blocks
    assert_equal(sparse, full)


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_changes_arrives_round_by_round(both, seed):
    source, target = both
    chance = random.Random(seed)
    sync = tree.Synchroniser(str(source))
    names = [f"{d}{f}" for d in ("", "x/", "x/y/", "z/") for f in "abcd"]
    for _ in range(12):
        for _ in range(chance.randrange(1, 8)):
            path, other = (source / chance.choice(names) for _ in range(2))
            with contextlib.suppress(OSError):
                match chance.randrange(10):
                    case 0:
                        path.unlink()
                    case 1:
                        os.link(path, other)
                    case 2:
                        path.rename(other)
                    case 3:
                        path.symlink_to(chance.choice(names))
                    case 4:
                        os.truncate(path, chance.randrange(3_000_000))
                    case 5:
                        with open(path, "r+b") as file:
                            file.seek(chance.randrange(2_500_000))
                            file.write(chance.randbytes(chance.randrange(5000)))
                    case 6:
                        path.parent.rename(source / chance.choice(["x", "z", "x/y", "a"]))
                    case 7:
                        path.parent.mkdir(parents=True)
                    case 8:
                        path.chmod(chance.choice([0o700, 0o755, 0o2711]))
                    case _:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(chance.randbytes(chance.choice([3, 70_000, 2_000_000])))
        transfer(sync, target, frozen=True)
        assert_equal(source, target)
