"""Every kind of lane keeps the contract that transport/lanes.py writes down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.contract.sshd_lab import SSHD, Lab, lab
from transport.errors import LinkLost, TimedOut, TransportFault
from transport.fakes import lane_pair
from transport.lane_handover import LaneServer
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsListener, TlsWriter
from transport.lanes import LaneReader, LaneWriter
from transport.ssh import connect

Pair = tuple[LaneWriter, LaneReader]


@pytest.fixture(scope="module", autouse=True)
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab | None]:
    """One sshd for all, started before the first test looks what is there."""
    if SSHD is None:
        yield None  # the tests that need it skip
        return
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@contextmanager
def fake(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    yield lane_pair()


@contextmanager
def tls(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    here, there = Identity.new(), Identity.new()
    with TlsListener("127.0.0.1", there, here.certificate) as listener:
        writer = TlsWriter("127.0.0.1", listener.port, here, there.certificate)
        yield writer, listener.accept(5)


@contextmanager
def over_ssh(
    request: pytest.FixtureRequest,
    folder: Path,
    make: type[OpensshWriter] | type[ParamikoWriter],
) -> Iterator[Pair]:
    host = request.getfixturevalue("host")
    with (
        connect("lab", files=host.files) as session,
        LaneServer(folder) as server,
    ):
        token = server.expect()
        writer = make(session, host.lane_argv(token, server.path))
        yield writer, server.accept(token, 5)


@contextmanager
def openssh(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    with over_ssh(request, folder, OpensshWriter) as pair:
        yield pair


@contextmanager
def paramiko(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    with over_ssh(request, folder, ParamikoWriter) as pair:
        yield pair


sshd = needs.tool("sshd", "ssh", "ssh-keygen")


@pytest.fixture(
    params=[fake, tls, pytest.param(openssh, marks=sshd), pytest.param(paramiko, marks=sshd)],
    ids=lambda kind: kind.__name__,
)
def lane(request: pytest.FixtureRequest, ckpt_root: Path) -> Iterator[Pair]:
    with request.param(request, ckpt_root) as (writer, reader):
        try:
            yield writer, reader
        finally:
            writer.abort()
            reader.abort()


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_all_bytes_arrive_in_order(lane: Pair) -> None:
    writer, reader = lane
    block = os.urandom((1 << 20) + 13)
    sent = hashlib.sha256()

    def send() -> None:
        for number in range(48):
            data = block[number:]
            sent.update(data)
            write_all(writer.fd, data)
        writer.finish(30)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        got = hashlib.sha256()
        while part := os.read(reader.fd, 1 << 20):
            got.update(part)
        reader.finish(10)
        sending.result(30)
    assert got.digest() == sent.digest()


def test_nothing_sent_is_a_good_lane_too(lane: Pair) -> None:
    writer, reader = lane
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(writer.finish, 20)
        assert read_all(reader.fd) == b""
        reader.finish(10)
        finishing.result(20)


def test_data_can_be_spliced_in_and_out(lane: Pair) -> None:
    writer, reader = lane
    data = os.urandom(300_000)
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()

    def feed() -> None:
        write_all(in_writer, data)
        os.close(in_writer)

    def send() -> None:
        while os.splice(in_reader, writer.fd, 1 << 16):
            pass
        writer.finish(20)

    def receive() -> None:
        while os.splice(reader.fd, out_writer, 1 << 16):
            pass
        os.close(out_writer)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(job) for job in (feed, send, receive)]
        assert read_all(out_reader) == data
        reader.finish(10)
        for job in jobs:
            job.result(20)
    os.close(in_reader)
    os.close(out_reader)


def test_the_writer_is_held_back_when_nobody_reads(lane: Pair) -> None:
    writer, reader = lane
    written = 0
    os.set_blocking(writer.fd, False)
    idle = threading.Event()
    while not idle.is_set():
        try:
            written += os.write(writer.fd, bytes(1 << 16))
            assert written < 200 << 20
        except BlockingIOError:
            before = written
            idle.wait(0.5)
            try:
                written += os.write(writer.fd, bytes(1 << 16))
            except BlockingIOError:
                if before == written:
                    idle.set()
    os.set_blocking(writer.fd, True)
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(writer.finish, 30)
        assert len(read_all(reader.fd)) == written
        reader.finish(10)
        finishing.result(30)


def test_the_writer_is_not_done_before_the_reader_is(lane: Pair) -> None:
    writer, reader = lane
    write_all(writer.fd, b"x" * 1000)
    with pytest.raises(TimedOut):
        writer.finish(0.5)


def test_a_word_that_comes_while_the_goodbye_is_said_counts(
    request: pytest.FixtureRequest, ckpt_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwrap = ssl.SSLSocket.unwrap
    met: list[str] = []

    def slow(sock: ssl.SSLSocket) -> object:
        """As unwrap() when the other end is quicker than its two looks: it meets what came in between."""
        if sock.server_side:
            return unwrap(sock)
        try:
            with contextlib.suppress(ssl.SSLWantReadError):
                unwrap(sock)
            select.select([sock], [], [], 10)
            return unwrap(sock)
        except ssl.SSLError as problem:
            met.append(problem.reason)
            raise

    monkeypatch.setattr(ssl.SSLSocket, "unwrap", slow)
    with tls(request, ckpt_root) as (writer, reader), ThreadPoolExecutor(1) as pool:
        write_all(writer.fd, b"all")
        sending = pool.submit(writer.finish, 20)
        assert read_all(reader.fd) == b"all"
        reader.finish(10)
        sending.result(20)
    assert met == ["APPLICATION_DATA_AFTER_CLOSE_NOTIFY"]


def test_a_reader_that_gives_up_makes_the_writer_fail(lane: Pair) -> None:
    writer, reader = lane
    write_all(writer.fd, b"x" * 1000)
    assert os.read(reader.fd, 10)
    reader.abort()
    with pytest.raises(LinkLost):
        writer.finish(10)


def test_a_writer_under_load_sees_the_reader_give_up(lane: Pair) -> None:
    writer, reader = lane
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(write_all, writer.fd, bytes(64 << 20))
        assert os.read(reader.fd, 10)
        reader.abort()
        with pytest.raises(BrokenPipeError):
            sending.result(20)
    with pytest.raises(TransportFault):
        writer.finish(10)


def test_a_truncated_stream_ends_and_is_not_taken_for_whole_by_its_count(lane: Pair) -> None:
    writer, reader = lane
    total = 64 << 20
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, reader.fd)
        write_all(writer.fd, bytes(total // 2))
        writer.abort()
        assert len(reading.result(20)) < total
    with pytest.raises(LinkLost):
        writer.finish(1)


def test_a_reader_with_a_full_pipe_can_be_aborted(lane: Pair) -> None:
    writer, reader = lane
    os.set_blocking(writer.fd, False)
    for _ in range(64):
        try:
            os.write(writer.fd, bytes(1 << 16))
        except BlockingIOError:
            break
    reader.abort()
    writer.abort()


def test_ending_twice_is_harmless_and_finishing_after_the_end_is_refused(lane: Pair) -> None:
    writer, reader = lane
    for end in (writer, reader):
        end.abort()
        end.abort()
        with pytest.raises(LinkLost):
            end.finish(1)


def test_nobody_else_inherits_a_lane(lane: Pair) -> None:
    writer, reader = lane
    assert not os.get_inheritable(writer.fd)
    assert not os.get_inheritable(reader.fd)
