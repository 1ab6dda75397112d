"""Serving a streamed restore, from directories and from a spool that is still filling."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from images.criu_stream import DirectorySource, Serve, ServeReport
from images.criu_wire import SERVE_SOCKET, build_request
from images.errors import Cancelled, ImageFault, Stalled, StreamerFault
from images.sources import Source
from images.spool import Spool
from tests.unit.images.fake_criu import InThread, Restorer, connect

BIG = os.urandom(5 << 20)


def in_thread(directory: Path, source: Source, **options: object) -> InThread:
    serve = Serve(str(directory))
    return InThread(lambda: serve.run(source, **options))  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def test_files_of_a_directory_are_served_whole_and_again(work: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "inventory.img").write_bytes(b"inventory")
    (images / "pages-1.img").write_bytes(BIG)
    (images / "empty.img").touch()
    directory = os.open(images, os.O_RDONLY)
    running = in_thread(work, DirectorySource(directory))
    criu = Restorer(work)
    assert criu.get("inventory.img") == b"inventory"
    assert criu.get("nothing.img") is None
    assert criu.get("pages-1.img") == BIG
    assert criu.get("inventory.img") == b"inventory"
    assert criu.get("empty.img") == b""
    criu.close()
    report = running.join()
    os.close(directory)
    assert isinstance(report, ServeReport)
    assert [exists for _, exists in report.asked] == [True, False, True, True, True]
    assert report.size == len(BIG) + 2 * len(b"inventory")


def test_a_pipe_nobody_reads_does_not_keep_others_waiting(work: Path) -> None:
    """CRIU's processes wait for one another with images half read."""
    with Spool() as spool:
        spool.put("pages-1.img", BIG)
        spool.put("pages-2.img", BIG[::-1])
        spool.end()
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        first = criu.ask("pages-1.img")
        assert first is not None
        assert criu.get("pages-2.img") == BIG[::-1]
        with open(first, "rb") as file:
            assert file.read() == BIG
        criu.close()
        running.join()


def test_an_image_closed_early_is_no_error(work: Path) -> None:
    with Spool() as spool:
        spool.put("pages-1.img", BIG)
        spool.end()
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        fd = criu.ask("pages-1.img")
        assert fd is not None
        os.read(fd, 100)
        os.close(fd)
        assert criu.get("pages-1.img") == BIG
        criu.close()
        running.join()


def test_a_request_waits_until_its_image_arrives(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source(), stall=0.2)
        criu = Restorer(work)
        asking = InThread(lambda: criu.get("inventory.img"))
        spool.put("pages-1.img", BIG)
        spool.put("inventory.img", b"at last")
        assert asking.join() == b"at last"
        asking = InThread(lambda: criu.get("never.img"))
        spool.end()
        assert asking.join() is None
        criu.close()
        running.join()


def test_an_image_is_served_while_it_is_still_coming(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        part = spool.open("pages-1.img")
        fd = criu.ask("pages-1.img")
        assert fd is not None
        with open(fd, "rb") as file:
            for n in range(20):
                part.append(bytes([n]) * 1000)
                assert file.read(1000) == bytes([n]) * 1000
            part.close()
            assert file.read() == b""
        criu.close()
        running.join()


def test_a_request_for_what_never_comes_ends_with_the_reason(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        criu.peer.sendall(build_request("inventory.img"))
        spool.fail(ImageFault(doing="reading", target="the lane", why="it broke"))
        with pytest.raises(ImageFault, match="it broke"):
            running.join()
        criu.close()


def test_half_an_image_is_never_ended_as_if_it_were_whole(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        part = spool.open("pages-1.img")
        part.append(b"half of it")
        fd = criu.ask("pages-1.img")
        assert fd is not None
        assert os.read(fd, 100) == b"half of it"
        spool.fail(ImageFault(doing="reading", target="the lane", why="it broke"))
        with pytest.raises(ImageFault, match="it broke"):
            running.join()
        os.close(fd)
        part.abandon()
        criu.close()


def test_a_criu_that_hangs_up_while_it_waits_ends_the_service(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        criu.peer.sendall(build_request("inventory.img"))
        criu.close()
        report = running.join()
        assert isinstance(report, ServeReport)
        assert report.asked == ()


def test_a_criu_that_stops_reading_is_given_up(work: Path) -> None:
    with Spool() as spool:
        spool.put("pages-1.img", BIG)
        spool.end()
        running = in_thread(work, spool.source(), stall=0.2)
        criu = Restorer(work)
        fd = criu.ask("pages-1.img")
        with pytest.raises(Stalled):
            running.join()
        assert fd is not None
        os.close(fd)
        criu.close()


def test_a_criu_that_waits_in_a_hook_is_not(work: Path) -> None:
    with Spool() as spool:
        spool.put("inventory.img", b"x")
        spool.end()
        running = in_thread(work, spool.source(), stall=0.1)
        criu = Restorer(work)
        assert criu.get("inventory.img") == b"x"
        time.sleep(0.5)
        assert criu.get("inventory.img") == b"x"
        criu.close()
        running.join()


def test_garbage_and_cancel(work: Path) -> None:
    with Spool() as spool:
        running = in_thread(work, spool.source())
        peer = connect(work, SERVE_SOCKET)
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(StreamerFault):
            running.join()
        peer.close()
        cancel = os.eventfd(1)
        with pytest.raises(Cancelled):
            in_thread(work, spool.source(), cancel_fd=cancel).join()
        os.close(cancel)
    assert list(work.iterdir()) == []


def test_pages_are_given_back_as_they_are_read(work: Path) -> None:
    with Spool(release_as_read=True) as spool:
        spool.put("pages-1.img", BIG * 4)
        spool.end()
        blob = spool._blobs["pages-1.img"]
        before = os.fstat(blob.fd).st_blocks
        running = in_thread(work, spool.source())
        criu = Restorer(work)
        assert criu.get("pages-1.img") == BIG * 4
        criu.close()
        running.join()
        assert os.fstat(blob.fd).st_blocks < before / 2
