"""Whatever is wrong with what people type or bring along: one clear line, a stable exit code, nothing left behind."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.box import Box, opened
from tests.e2e.snagging import counted_on, nothing_of, runs_on, start, with_snags

pytestmark = needs.CHECKPOINTS


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    with opened(ckpt_root, with_snags(small_rootfs)) as made:
        yield made


# ---- what is typed

TYPED = [
    ("a name with a slash", ("--name", "a/b"), 3),
    ("a name that climbs", ("--name", ".."), 3),
    ("an empty name", ("--name", " "), 3),
    ("a long name", ("--name", "x" * 64), 3),
    ("a size without sense", ("--memory", "lots"), 3),
    ("a negative size", ("--memory", "-5m"), 3),
    ("a size beyond all bounds", ("--memory", "9" * 30), 3),
    ("no CPUs", ("--cpus", "0"), 3),
    ("a cpuset without sense", ("--cpuset-cpus", "3-1"), 3),
    ("a port out of range", ("-p", "70000:80"), 3),
    ("a port that is none", ("-p", "http:80"), 3),
    ("port zero", ("-p", "0:80"), 3),
    ("a protocol that is none", ("-p", "80:80/xyz"), 3),
    ("a bad address", ("--network", "l2=br0,ip=300.1.1.1/24"), 3),
    ("an address without prefix", ("--network", "l2=br0,ip=10.0.0.1"), 3),
    ("a network that is none", ("--network", "magic"), 3),
    ("a volume without target", ("-v", "/tmp"), 3),
    ("a volume onto a relative path", ("-v", "/tmp:data"), 3),
    ("a variable without name", ("-e", "=x"), 3),
    ("a capability that is none", ("--cap-add", "CAP_FLY"), 3),
    ("a sysctl of the host", ("--sysctl", "kernel.panic=1"), 13),
    ("a limit that is none", ("--ulimit", "nofile=many"), 3),
    ("a policy that is none", ("--restart", "sometimes"), 3),
    ("a user that nobody knows", ("-u", "nobody-here"), 3),
    ("a seccomp profile that is missing", ("--security-opt", "seccomp=/nowhere"), 3),
    ("a name server that is none", ("--dns", "example.org"), 3),
]


@pytest.mark.parametrize(("flags", "code"), [case[1:] for case in TYPED], ids=[c[0] for c in TYPED])
def test_a_flag_that_makes_no_sense(box: Box, flags: tuple[str, ...], code: int) -> None:
    network = () if "--network" in flags or "-p" in flags else ("--network", "none")
    box.fails(code, "run", "-d", *network, *flags, box.rootfs, "--", "sleep", "5")
    nothing_of(box)


def test_names_that_nobody_has(box: Box) -> None:
    for words in (
        ("dump", "none"),
        ("stop", "none"),
        ("rm", "none"),
        ("logs", "none"),
        ("exec", "none", "--", "true"),
        ("restore", "none"),
        ("restore", "/no/such/file"),
        ("checkpoints", "inspect", "none"),
        ("checkpoints", "verify", "none"),
        ("checkpoints", "export", "none", "-"),
        ("run", "/no/such/rootfs", "--", "true"),
    ):
        box.fails(10, *words)
    nothing_of(box)


# ---- archives


def archive(where: Path, *entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Path:
    path = where / "root.tar"
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            info, data = entry if isinstance(entry, tuple) else (entry, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    return info


CLIMBING: dict[str, Callable[[Path], list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]]] = {
    "a path with ..": lambda out: [(entry("../escaped"), b"x")],
    "a path with .. inside": lambda out: [(entry("a/../../escaped"), b"x")],
    "through a link": lambda out: [
        entry("way", tarfile.SYMTYPE, str(out)),
        (entry("way/escaped"), b"x"),
    ],
    "through a link of two steps": lambda out: [
        entry("up", tarfile.SYMTYPE, ".."),
        entry("way", tarfile.SYMTYPE, "up/up"),
        (entry("way/escaped"), b"x"),
    ],
    "a hard link to the outside": lambda out: [
        entry("taken", tarfile.LNKTYPE, f"../../../../../../../..{out}/secret")
    ],
    "a hard link through a link": lambda out: [
        entry("way", tarfile.SYMTYPE, str(out)),
        entry("taken", tarfile.LNKTYPE, "way/secret"),
    ],
}


@pytest.mark.parametrize("how", CLIMBING)
def test_an_archive_that_climbs_out_is_refused(box: Box, tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s3cret")
    root = archive(tmp_path, *CLIMBING[how](outside))
    said = box.fails(3, "run", "--network", "none", root, "--", "cat", "/taken")
    assert "s3cret" not in said
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").stat().st_nlink == 1
    assert not list(Path("/tmp").glob("escaped"))
    nothing_of(box)
    assert not list((box.root / "layers").rglob("escaped"))


def test_devices_in_an_archive_are_not_made(box: Box, tmp_path: Path) -> None:
    disk = entry("disk", tarfile.BLKTYPE)
    disk.devmajor, disk.devminor = 7, 0
    root = archive(tmp_path, disk)
    done = box.call("run", "--network", "none", root, "--", "true")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not [path for path in (box.root / "layers").rglob("*") if path.is_block_device()]
    nothing_of(box)


@pytest.mark.parametrize(
    "data", [b"", b"garbage" * 1000, b"\x1f\x8b\x08\0garbage", b"\x28\xb5\x2f\xfdgarbage"]
)
def test_an_archive_that_is_none(box: Box, tmp_path: Path, data: bytes) -> None:
    root = tmp_path / "root.tar"
    root.write_bytes(data)
    box.fails(3, "run", "--network", "none", root, "--", "true")
    nothing_of(box)


# ---- leftovers


def test_recover_removes_directories_that_are_no_containers(box: Box) -> None:
    box.up("web")
    (box.root / "containers/0123456789ab/rw").mkdir(parents=True)
    (box.root / "containers/ba9876543210").mkdir()
    (box.root / "containers/ba9876543210/lock").touch()
    assert box("recover").count("was no container; removed") == 2
    nothing_of(box, but=("web",))
    assert box.one("web")["state"] == "running"
    assert box("recover") == "nothing to recover\n"


# ---- a full disk


@pytest.fixture
def small(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    """A host whose root is a file system of 40 MiB."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m,mode=711", "ckpt-test", str(ckpt_root)], check=True
    )
    try:
        with opened(ckpt_root, with_snags(small_rootfs)) as made:
            yield made
    finally:
        # Lazily: the last monitor may not be quite gone.
        subprocess.run(["umount", "-l", str(ckpt_root)], check=True)


def fill(box: Box, leave: int) -> Path:
    """Leave so many bytes free."""
    space = os.statvfs(box.root)
    path = box.root / "filler"
    with path.open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave)
    return path


def test_a_store_that_is_too_small_is_found_before_the_freeze(small: Box) -> None:
    start(small, "web", "memory", 60 << 20)
    said = small.fails(15, "dump", "web")
    assert "MiB are needed" in said
    assert "prune" in said
    counted_on(small, "web")
    nothing_of(small, but=("web",))


def test_a_disk_that_fills_up_during_the_dump_loses_nothing(small: Box) -> None:
    start(small, "web", "memory", 2 << 20)
    # Enough for what is foreseen, but a file that grows from memory nobody counts is not foreseen.
    small("exec", "web", "sh", "-c", "head -c 14000000 /dev/urandom > /dev/shm/x")
    filler = fill(small, 21 << 20)
    done = small.call("dump", "web", "--json")
    if done.returncode:
        assert done.returncode == 15, done.stderr
    assert "Traceback" not in done.stderr
    nothing_of(small, but=("web",))
    filler.unlink()
    if done.returncode:
        runs_on(small, "web")
        counted_on(small, "web")
        small("dump", "web", "--as", "afterwards")


def test_a_disk_without_room_for_a_container(small: Box) -> None:
    small("run", "-d", "--name", "first", "--network", "none", small.rootfs, "--", "sleep", "99")
    filler = fill(small, 0)
    done = small.call("run", "-d", "--network", "none", small.rootfs, "--", "sleep", "99")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr, done.stderr
    nothing_of(small, but=("first",))
    filler.unlink()
    assert small("exec", "first", "echo", "fine") == "fine\n"
