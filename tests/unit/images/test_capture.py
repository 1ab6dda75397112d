"""Receiving a streamed dump, with a CRIU that behaves, misbehaves, dies and stalls."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path

import pytest

from images.criu_stream import Capture, CaptureReport
from images.criu_wire import CAPTURE_SOCKET, build_request
from images.errors import Cancelled, ImageFault, NoSpace, Stalled, StreamerFault
from images.spool import Spool
from tests.unit.images.fake_criu import Dumper, InThread, connect, until, write_all

BIG = os.urandom(3 << 20)


def in_thread(capture: Capture, spool: Spool, **options: object) -> InThread:
    return InThread(lambda: capture.run(spool, **options))  # type: ignore[arg-type]


def test_many_pipes_at_once_keep_their_bytes_apart(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        names = [f"core-{n}.img" for n in range(7)]
        pipes = [criu.open(name) for name in names]
        for round_ in range(50):
            for n, fd in enumerate(pipes):
                write_all(fd, bytes([n]) * (997 * (round_ + 1)))
        for fd in reversed(pipes):
            os.close(fd)
        criu.put("inventory.img", b"last")
        criu.close()
        report = running.join()
        assert isinstance(report, CaptureReport)
        assert report.complete
        for n, name in enumerate(names):
            data = spool.read(name)
            assert data == bytes([n]) * (997 * sum(range(1, 51)))
        assert dict(report.files) == {i.name: i.size for i in spool.infos().values()}


def test_large_images_pass_whole(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        criu.put("pages-1.img", BIG)
        criu.put("inventory.img", b"x")
        criu.close()
        running.join()
        assert spool.read("pages-1.img") == BIG


def test_an_empty_image_is_an_image(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        criu.put("pages-1.img", b"")
        criu.close()
        report = running.join()
        assert isinstance(report, CaptureReport)
        assert report.files == (("pages-1.img", 0),)
        assert spool.read("pages-1.img") == b""


def test_of_two_images_with_one_name_the_last_wins(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        first = criu.open("fs-1.img")
        write_all(first, b"first and longer")
        criu.put("fs-1.img", b"second")
        os.close(first)
        criu.close()
        running.join()
        assert spool.read("fs-1.img") == b"second"


def test_complete_is_told_once_while_criu_still_waits_in_a_hook(tmp_path: Path) -> None:
    told: list[bool] = []
    with Spool() as spool:
        capture = Capture(str(tmp_path))
        # The stall time has passed long before CRIU leaves its hook: no reason to give up.
        running = in_thread(
            capture, spool, stall=0.3, on_complete=lambda: told.append(capture.complete)
        )
        criu = Dumper(tmp_path)
        late = criu.open("pages-1.img")
        criu.put("inventory.img", b"x")
        criu.put("core-1.img", b"x")
        until(lambda: "core-1.img" in spool.infos())
        assert told == []
        os.close(late)
        until(lambda: bool(told))
        with pytest.raises(AssertionError):
            until(lambda: len(told) > 1, 0.7)
        criu.close()
        report = running.join()
        assert isinstance(report, CaptureReport)
        assert report.complete and told == [True]


def test_a_criu_that_dies_gives_an_incomplete_report(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        criu.put("core-1.img", b"x")
        half = criu.open("pages-1.img")
        write_all(half, b"half")
        os.close(half)
        criu.close()
        report = running.join()
        assert isinstance(report, CaptureReport)
        assert not report.complete


@pytest.mark.parametrize("sent", [None, 0, 6, len(build_request("core-1.img"))])
def test_a_criu_that_stalls_before_an_image_is_given_up(tmp_path: Path, sent: int | None) -> None:
    """Not connected; connected and silent; within a request; between request and pipe."""
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool, stall=0.2)
        peer = None if sent is None else connect(tmp_path, CAPTURE_SOCKET)
        if peer is not None:
            peer.sendall(build_request("core-1.img")[:sent])
        with pytest.raises(Stalled):
            running.join()
        if peer is not None:
            peer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_criu_that_stalls_within_an_image_is_given_up(tmp_path: Path) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool, stall=0.2)
        criu = Dumper(tmp_path)
        fd = criu.open("pages-1.img")
        write_all(fd, b"then nothing")
        with pytest.raises(Stalled):
            running.join()
        os.close(fd)
        criu.close()
        assert spool.infos() == {} and spool.held == 0


def send_both_ends(peer: socket.socket, pipe_count: int) -> None:
    pipes = [os.pipe() for _ in range(pipe_count)]
    rights = array.array("i", [end for pipe in pipes for end in pipe])
    peer.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if pipes else [])
    for fd in rights:
        os.close(fd)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("=I", 0),
        struct.pack("=I", 1 << 31),
        struct.pack("=I", 5000) + b"\x0a\x85\x27" + b"a" * 4997,
        struct.pack("=I", 3) + b"\x0a\x7fa",
        struct.pack("=I", 4) + b"\xff\xff\xff\xff",
        struct.pack("=I", 2) + b"\x08\x01",
        build_request("../../etc/passwd"),
        build_request(".."),
        build_request(""),
        build_request("a\nb"),
        build_request("ä"),
        build_request("x" * 300),
        b"\x01\0\0",
    ],
)
def test_garbage_is_refused_in_one_line(tmp_path: Path, frame: bytes) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        peer = connect(tmp_path, CAPTURE_SOCKET)
        peer.sendall(frame)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(ImageFault) as caught:
            running.join()
        peer.close()
        assert "\n" not in str(caught.value)
        assert spool.infos() == {}


@pytest.mark.parametrize("pipes", [0, 1])
def test_a_byte_without_exactly_one_pipe_is_refused(tmp_path: Path, pipes: int) -> None:
    with Spool() as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        peer = connect(tmp_path, CAPTURE_SOCKET)
        peer.sendall(build_request("core-1.img"))
        send_both_ends(peer, pipes)  # none, or both ends
        with pytest.raises(StreamerFault, match="not one pipe"):
            running.join()
        peer.close()


def test_a_cancel_ends_it_at_any_time(tmp_path: Path) -> None:
    for connected in (False, True):
        cancel = os.eventfd(0)
        with Spool() as spool:
            running = in_thread(Capture(str(tmp_path)), spool, cancel_fd=cancel)
            criu = Dumper(tmp_path) if connected else None
            fd = criu.open("core-1.img") if criu else -1
            os.eventfd_write(cancel, 1)
            with pytest.raises(Cancelled):
                running.join()
            if criu:
                os.close(fd)
                criu.close()
        os.close(cancel)


def test_a_sink_that_fails_ends_the_dump_and_keeps_nothing_open(tmp_path: Path) -> None:
    with Spool(limit=1000) as spool:
        running = in_thread(Capture(str(tmp_path)), spool)
        criu = Dumper(tmp_path)
        fd = criu.open("pages-1.img")
        with pytest.raises(BrokenPipeError):
            while True:
                write_all(fd, bytes(10000))
        os.close(fd)
        with pytest.raises(NoSpace):
            running.join()
        criu.close()


def test_a_directory_with_a_long_path_can_be_given_as_descriptor(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    directory = os.open(deep, os.O_RDONLY)
    (deep / CAPTURE_SOCKET).touch()  # what an aborted run left
    capture = Capture(directory)
    assert (deep / CAPTURE_SOCKET).is_socket()
    with Spool() as spool:
        running = in_thread(capture, spool)
        criu = Dumper(Path(f"/proc/self/fd/{directory}"))
        criu.put("inventory.img", b"x")
        criu.close()
        running.join()
        assert spool.read("inventory.img") == b"x"
    os.close(directory)
    assert list(deep.iterdir()) == []


def test_a_capture_that_never_runs_leaves_nothing(tmp_path: Path) -> None:
    Capture(str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == []
