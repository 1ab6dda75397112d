"""Checkpoints as pure streams: nothing on a disk in between, and one clear error for whatever is wrong with one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.bundle_stream import StreamReader
from images.receive import receive
from tests import needs
from tests.e2e.box import Box, opened, until
from tests.e2e.snagging import counted_on, nothing_of, runs_on, start, with_snags
from tests.patience import patient

pytestmark = needs.CHECKPOINTS

MEMORY = 24 << 20


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, with_snags(small_rootfs)) as made:
        yield made


@pytest.fixture
def other(box: Box) -> Iterator[Box]:
    """Another host."""
    box.root.chmod(0o711)  # containers' users walk through it
    (box.root / "there").mkdir()
    with opened(box.root / "there", box.rootfs) as made:
        yield made


def a_stream(box: Box, *words: object) -> bytes:
    """A container `web` that runs on, and its checkpoint as a stream."""
    start(box, "web", *(words or ("count",)))
    done = box.call("dump", "web", "--leave-running", "-o", "-", text=False)
    assert done.returncode == 0, done.stderr
    return bytes(done.stdout)


def on_disk(root: Path) -> int:
    """Bytes below ROOT, but for what is mounted there. What vanishes meanwhile makes du complain, or give up."""
    while True:
        done = subprocess.run(["du", "-sxb", str(root)], capture_output=True, text=True)
        if done.stdout:
            return int(done.stdout.split()[0])


def most_on_disk(root: Path, process: subprocess.Popen[bytes]) -> int:
    """The largest size that ROOT was seen with until PROCESS ended."""
    most = 0
    while process.poll() is None:
        most = max(most, on_disk(root))
    return most


def restore_fails(box: Box, data: bytes, *codes: int) -> str:
    """A restore of DATA ends with one of CODES and one line, and nothing is left of it."""
    done = box.call("restore", "-", input=data, text=False)
    said = done.stderr.decode()
    assert done.returncode in codes, (done.returncode, said)
    lines = [
        line
        for line in said.splitlines()
        if not line.startswith(("    ", "  the whole log", "  trying again"))
    ]
    assert len(lines) == 1, said
    assert lines[0].startswith("ckpt: "), said
    nothing_of(box)
    return lines[0]


# ---- volumes


def test_a_stream_brings_named_volumes_along_and_overwrites_none(box: Box, other: Box) -> None:
    start(box, "web", "hold", "/data/file", 5_000, flags=("-v", "data:/data"))
    done = box.call("dump", "web", "-o", "-", text=False)
    assert done.returncode == 0, done.stderr
    here, there = box.root / "volumes/data", other.root / "volumes/data"
    # Where it is the same it is used, where it isn't there it is made.
    for host, place in ((box, here), (other, there)):
        host("restore", "-", "--as", "copy", input=done.stdout, text=False)
        assert (place / "file").stat().st_size == 5_000
        runs_on(host, "copy")
    other("rm", "-f", "copy")
    (there / "file").write_bytes(b"mine")
    said = restore_fails(other, done.stdout, 11)
    assert "volume data: this host has one of that name with other content" in said
    assert os.listdir(there.parent) == ["data"]
    assert (there / "file").read_bytes() == b"mine"
    # A restore that fails takes away what came with it.
    shutil.rmtree(there)
    restore_fails(other, done.stdout[: len(done.stdout) * 3 // 4], 21, 36, 20)
    assert os.listdir(there.parent) == []


def test_the_store_leaves_volumes_where_they_are_and_says_so(box: Box) -> None:
    start(box, "web", "hold", "/data/file", 5_000, flags=("-v", "data:/data"))
    box("dump", "web", "--as", "one")
    box("rm", "web")
    assert "volume data at /data: it stays on its host" in box("checkpoints", "inspect", "one")
    place = box.root / "volumes/data"
    place.rename(box.root / "away")
    assert "volume data is not here" in box.fails(13, "restore", "one")
    (box.root / "away").rename(place)
    done = box.call("restore", "one")
    assert done.returncode == 0, done.stderr
    assert "volume data is as it is now" in done.stderr
    runs_on(box, "web")


# ---- nothing on a disk


def test_dump_into_restore_through_a_pipe_writes_nothing_to_disk(box: Box, other: Box) -> None:
    start(box, "web", "memory", MEMORY)
    here, there = on_disk(box.root) - on_disk(other.root), on_disk(other.root)
    sender = box.popen("dump", "web", "-o", "-", stdout=subprocess.PIPE)
    receiver = other.popen("restore", "-", stdin=sender.stdout, stdout=subprocess.DEVNULL)
    assert sender.stdout is not None
    sender.stdout.close()
    most = most_on_disk(box.root, receiver)
    assert (sender.wait(60), receiver.wait(60)) == (0, 0)
    # Both roots together grow by the layers that came along (2 MiB of busybox and snags), and logs.
    layers = on_disk(box.root / "layers")
    assert layers < MEMORY / 3
    assert most < here + there + layers + MEMORY / 3, (most, here, there, layers)
    assert box.one("web")["state"] == "stopped"
    assert box("checkpoints", "ls", "--json").strip() == "[]"
    runs_on(other, "web")


def test_a_dump_to_a_stream_works_on_a_store_that_cannot_be_written(box: Box) -> None:
    start(box, "web", "memory", MEMORY)
    store = box.root / "checkpoints"
    store.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "ckpt-test", str(store)], check=True)
    try:
        done = box.call("dump", "web", "--leave-running", "-o", "-", text=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > MEMORY
        runs_on(box, "web")
        # while the store itself says in one line that it can't
        assert len(box.call("dump", "web").stderr.splitlines()) == 1
        runs_on(box, "web")
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_a_file_and_standard_output_carry_the_same_kind_of_stream(
    box: Box, other: Box, tmp_path: Path
) -> None:
    start(box, "web", "count")
    box("dump", "web", "-o", str(tmp_path / "one"), "--leave-running")
    assert os.listdir(tmp_path) == ["one"]
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "one").open("rb") as file, StreamReader(file.fileno()) as reader:
        assert receive(reader, _Everything()).size > 10_000
    other("restore", str(tmp_path / "one"))
    runs_on(other, "web")
    other("rm", "-f", "web")
    with (tmp_path / "one").open("rb") as file:
        assert other.call("restore", "-", stdin=file).returncode == 0
    runs_on(other, "web")


def test_a_terminal_is_no_place_for_a_stream(box: Box) -> None:
    start(box, "web", "count")
    done = subprocess.run(
        ["script", "-qec", " ".join([*box.argv("dump", "web", "-o", "-"), "2>err"]), "/dev/null"],
        cwd=box.root,
        env={**box.environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=patient(60),
    )
    assert done.returncode == 3
    assert "not for eyes" in (box.root / "err").read_text()
    runs_on(box, "web")


# ---- the source goes on


@pytest.mark.parametrize("taken", [0, 1, 100, 60_000, 3_000_000, 20_000_000])
def test_a_reader_that_leaves_does_not_stop_the_container(box: Box, taken: int) -> None:
    start(box, "web", "memory", MEMORY)
    dump = box.popen("dump", "web", "-o", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert dump.stdout is not None
    assert dump.stderr is not None
    left = taken
    while left:
        got = len(dump.stdout.read(min(left, 65536)))
        assert got
        left -= got
    dump.stdout.close()
    said = dump.stderr.read().decode()
    assert dump.wait(60) in (23, 141), said
    assert "Traceback" not in said
    runs_on(box, "web")
    counted_on(box, "web")
    box("dump", "web", "--as", "afterwards")


def test_a_disk_that_fills_up_does_not_stop_the_container(box: Box, tmp_path: Path) -> None:
    start(box, "web", "memory", MEMORY)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "ckpt-test", str(small)], check=True)
    try:
        done = box.call("dump", "web", "-o", str(small / "one"))
        assert done.returncode == 15, done.stderr
        assert done.stderr.count("\n") <= 2, done.stderr
        assert os.listdir(small) == []
        with (small / "two").open("wb") as file:
            assert (
                box.call(
                    "dump", "web", "-o", "-", stdout=file, stderr=-1, capture_output=False
                ).returncode
                == 15
            )
    finally:
        subprocess.run(["umount", str(small)], check=True)
    runs_on(box, "web")
    counted_on(box, "web")


# ---- the destination stays empty


def test_a_stream_that_ends_early_leaves_nothing(box: Box, other: Box) -> None:
    data = a_stream(box)
    random.seed(2)
    points = [0, 1, 15, 16, 17, 40, len(data) // 3, len(data) // 2, len(data) - 1]
    points += [random.randrange(len(data)) for _ in range(6)]
    for point in points:
        restore_fails(other, data[:point], 21)
    done = other.call("restore", "-", input=data, text=False)
    assert done.returncode == 0, done.stderr
    runs_on(other, "web")


def test_a_flipped_bit_anywhere_leaves_nothing(box: Box, other: Box) -> None:
    data = a_stream(box)
    random.seed(3)
    points = [0, 7, 8, 12, 20, 30, 50, len(data) - 1, len(data) - 40]
    points += [random.randrange(len(data)) for _ in range(12)]
    for point in points:
        damaged = bytearray(data)
        damaged[point] ^= 1 << random.randrange(8)
        restore_fails(other, bytes(damaged), 3, 10, 20, 21, 22, 23)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"garbage\n" * 100,
        b"\0" * 5000,
        b"CKPT",
        os.urandom(70_000),
        b"\x1f\x8b\x08" + b"x" * 99,
    ],
    ids=["nothing", "a byte", "text", "zeros", "a beginning", "noise", "gzip"],
)
def test_garbage_is_refused(other: Box, data: bytes) -> None:
    said = restore_fails(other, data, 21, 22)
    assert "checkpoint stream" in said


def test_another_version_is_refused_by_name(box: Box, other: Box) -> None:
    data = bytearray(a_stream(box))
    at = 8
    assert data[at] == 1
    data[at] = 9
    said = restore_fails(other, bytes(data), 22)
    assert "version is 9" in said


def test_what_the_dumper_says_when_it_gives_up_arrives_at_the_other_end(
    box: Box, other: Box
) -> None:
    start(box, "web", "ghost", "/tmp/big", 70 << 20)
    done = box.call("dump", "web", "-o", "-", text=False)
    assert done.returncode == 20
    said = restore_fails(other, done.stdout, 23)
    assert "too large to carry" in said
    runs_on(box, "web")


def test_a_name_that_is_taken_there_is_refused_and_the_source_goes_on(box: Box, other: Box) -> None:
    start(other, "web", "count")
    start(box, "web", "memory", MEMORY)
    sender = box.popen("dump", "web", "-o", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done = other.call("restore", "-", stdin=sender.stdout)
    assert sender.stdout is not None
    assert sender.stderr is not None
    sender.stdout.close()
    sender.stderr.read()
    assert done.returncode == 11, done.stderr
    assert sender.wait(60) == 23
    runs_on(box, "web")
    counted_on(box, "web")
    runs_on(other, "web")
    until(lambda: len(other.names()) == 1)


class _Everything(dict):  # type: ignore[type-arg]
    """A sink for every kind of part, which forgets it."""

    def __contains__(self, kind: object) -> bool:
        return True

    def __missing__(self, kind: str) -> _Everything:
        return self

    def open(self, name: str) -> _Everything:
        return self

    def take(self, mover: object, source: int, count: int, hashers: object = ()) -> None:
        mover.discard(source, count, hashers)  # type: ignore[attr-defined]

    def close(self) -> None: ...

    def abandon(self) -> None: ...
