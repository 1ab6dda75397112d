"""Inspection of a real dump, and of the same dump broken in every file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.errors import Corrupt, ImageFault
from images.inspect import inspect_images
from images.inspection import Inspection
from images.parts import CRIU, DirectorySink
from tests import needs, runtag
from tests.e2e.images_lab.lab import dump, started

pytestmark = [needs.root, needs.criu, needs.pycriu]
MEBIBYTES = 3


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """One dump of the workload for all of this module."""
    with tempfile.TemporaryDirectory(prefix=f"ckpt-{runtag.TAG}-", dir="/tmp") as folder:
        directory = Path(folder, "images")
        directory.mkdir()
        fd = os.open(directory, os.O_RDONLY)
        with started(Path(folder), MEBIBYTES) as workload:
            dump(workload, Path(folder), DirectorySink(fd, CRIU))
        os.close(fd)
        shutil.copy(Path(folder, "d/stats-dump"), directory)
        yield directory


@pytest.fixture(scope="module")
def found(images: Path) -> Inspection:
    return inspect_images(str(images))


def test_the_process_tree_is_shown(found: Inspection) -> None:
    first, child = found.processes
    assert (first.pid, first.ppid, first.sid, first.uid, first.gid) == (1, 0, 1, 0, 0)
    assert (child.ppid, child.sid, child.state) == (1, child.pid, "running")
    assert first.comm == "python3" and first.executable.startswith("/usr/bin/python3")
    assert first.directory == "/"
    assert len(first.threads) == 2 and first.threads[0].tid == 1
    assert [thread.tid for thread in child.threads] == [child.pid]


def test_open_files_have_path_position_and_fate(found: Inspection) -> None:
    files = {file.what: file for file in found.processes[0].files}
    regular, deleted = files["/tmp/regular"], files["/tmp/deleted"]
    assert (regular.position, regular.size, regular.mode, regular.deleted) == (4, 10, "rw", False)
    assert (deleted.position, deleted.size, deleted.deleted) == (10, 10, True)
    assert regular.close_on_exec
    assert {file.fd for file in found.processes[0].files if file.what == "/dev/null"} == {0, 1, 2}


def test_sockets_have_addresses_states_and_queues(found: Inspection) -> None:
    inet = {(s.protocol, s.state): s for s in found.sockets if s.family == "inet"}
    listener = inet["tcp", "listening"]
    assert listener.local.startswith("127.0.0.1:") and listener.remote == ""
    pair = [s for s in found.sockets if (s.protocol, s.state) == ("tcp", "established")]
    assert sorted(s.receive_queue for s in pair) == [0, len("on the wire")]
    assert pair[0].local == pair[1].remote and pair[1].local == pair[0].remote
    assert ("udp", "closed") in inet
    unix = [s for s in found.sockets if s.family == "unix"]
    assert sorted(s.receive_queue for s in unix) == [0, len("in the socket")]
    assert all(s.type == "stream" and len(s.owners) == 2 for s in unix)


def test_pipes_have_ends_and_content(found: Inspection) -> None:
    (pipe,) = found.pipes
    assert pipe.queue == len("in the pipe")
    assert len(pipe.readers) == len(pipe.writers) == 2
    assert pipe.readers[0].startswith("1:")


def test_memory_adds_up_to_the_page_data(found: Inspection) -> None:
    first = {kind.kind: kind for kind in found.processes[0].memory}
    assert first["anonymous"].dumped >= MEBIBYTES << 20
    assert first["heap"].dumped > 0 and first["stack"].dumped > 0
    assert first["file private"].size > first["file private"].dumped > 0
    assert first["shared memory"].size >= 1 << 20 and first["shared memory"].dumped == 0
    (shared,) = found.shared_memory
    assert shared.dumped == 4096
    pages = sum(size for name, size in found.images.items() if name.startswith("pages-"))
    assert sum(process.dumped for process in found.processes) + shared.dumped == pages
    assert found.times["frozen_time"] > 0 and found.counters["pages_written"] > 0
    assert found.size == sum(found.images.values())


def test_it_can_be_printed_as_json(found: Inspection) -> None:
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["processes"][0]["files"][0]["fd"] == 0


def test_every_image_that_is_cut_or_scrambled_is_named_or_harmless(
    images: Path, tmp_path: Path
) -> None:
    """Never another exception than ours, never an endless loop, and the file's name in it."""
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    named = set()
    for path in sorted(copy.glob("*.img")):
        data = path.read_bytes()
        if len(data) > 100_000:
            continue
        for harm in (b"", data[:6], data[: len(data) // 2], data[:-1], data[:8] + b"\xff" * 60):
            path.write_bytes(harm)
            try:
                inspect_images(str(copy))
            except ImageFault as fault:
                assert isinstance(fault, Corrupt) and "\n" not in str(fault)
                assert path.name in str(fault)
                named.add(path.name)
        path.write_bytes(data)
    # All that the inspection reads; what it doesn't (ghost files, mounts, tmpfs) it can't blame.
    assert {
        "core-1.img",
        "files.img",
        "inventory.img",
        "mm-1.img",
        "pagemap-1.img",
        "pipes-data.img",
        "pstree.img",
        "remap-fpath.img",
        "sk-queues.img",
    } <= named


def test_every_flipped_byte_gives_a_result_or_a_fault(images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in images.iterdir():
        if path.name.startswith("pages-"):
            (copy / path.name).symlink_to(path)
        else:
            shutil.copy(path, copy)
    for name in ("pstree.img", "ids-1.img", "fdinfo-2.img", "pagemap-1.img", "pipes-data.img"):
        path = copy / name
        data = path.read_bytes()
        for at in range(0, len(data), 1 + len(data) // 150):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                inspect_images(str(copy))
            except Corrupt as fault:
                assert "\n" not in str(fault)
        path.write_bytes(data)


def test_a_dump_that_never_ended_is_told(images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (copy / "inventory.img").unlink()
    with pytest.raises(Corrupt, match="never ended"):
        inspect_images(str(copy))
    with pytest.raises(ImageFault):
        inspect_images(str(tmp_path / "nowhere"))
