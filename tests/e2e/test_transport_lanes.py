"""Lanes over a real sshd when either end dies, and what a lane process does without its agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.contract.sshd_lab import REPO, Lab, Sshd, lab
from transport.errors import LinkLost, RemoteMissing, TimedOut, TransportFault, Unreachable
from transport.lane_handover import HandedReader, LaneServer
from transport.lane_host import LaneHost
from transport.lane_opening import open_lane
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsListener, TlsWriter, arrival_address
from transport.lanes import LaneWriter
from transport.messages import Message, make
from transport.ssh import connect

pytestmark = needs.tool("sshd", "ssh", "ssh-keygen")
WRITERS = [OpensshWriter, ParamikoWriter]


@pytest.fixture
def host(ckpt_root: Path) -> Iterator[Lab]:
    with lab(ckpt_root / "lab") as made:
        yield made


@contextmanager
def lane(
    host: Lab, make: type[OpensshWriter] | type[ParamikoWriter]
) -> Iterator[tuple[LaneWriter, HandedReader]]:
    with connect("lab", files=host.files) as session, LaneServer(host.folder) as server:
        token = server.expect()
        writer = make(session, host.lane_argv(token, server.path))
        reader = server.accept(token, 5)
        try:
            yield writer, reader
        finally:
            writer.abort()
            reader.abort()


def drain(fd: int) -> int:
    total = 0
    while data := os.read(fd, 1 << 20):
        total += len(data)
    return total


def pour(fd: int, total: int) -> None:
    block = bytes(1 << 20)
    while total > 0:
        total -= os.write(fd, block[:total])


@pytest.mark.parametrize("make", WRITERS)
def test_the_servers_death_under_load_ends_both_ends(host: Lab, make: type[OpensshWriter]) -> None:
    with lane(host, make) as (writer, reader), ThreadPoolExecutor(2) as pool:
        sending = pool.submit(pour, writer.fd, 4 << 30)
        assert os.read(reader.fd, 1 << 20)
        host.sshd.kill_sessions()
        with pytest.raises(BrokenPipeError):
            sending.result(20)
        assert drain(reader.fd) < 4 << 30
        with pytest.raises(LinkLost):
            writer.finish(10)


def test_the_death_of_the_ssh_client_under_load_ends_both_ends(host: Lab) -> None:
    with lane(host, OpensshWriter) as (writer, reader), ThreadPoolExecutor(1) as pool:
        assert isinstance(writer, OpensshWriter)
        sending = pool.submit(pour, writer.fd, 4 << 30)
        assert os.read(reader.fd, 1 << 20)
        os.kill(writer._ssh.pid, signal.SIGKILL)
        with pytest.raises(BrokenPipeError):
            sending.result(20)
        drain(reader.fd)
        with pytest.raises(LinkLost):
            writer.finish(10)


def test_the_agents_death_reaches_the_source(host: Lab) -> None:
    """The agent's end of the lane vanishes without a word, as when it is killed."""
    with lane(host, OpensshWriter) as (writer, reader):
        os.write(writer.fd, b"data")
        reader.abort()
        with pytest.raises(LinkLost, match="gave it up"):
            writer.finish(10)


@pytest.mark.parametrize("make", WRITERS)
def test_a_missing_program_is_named(host: Lab, make: type[OpensshWriter]) -> None:
    with connect("lab", files=host.files) as session, pytest.raises(RemoteMissing):
        make(session, ["no-such-ckpt", "agent", "--lane", "x"])


@pytest.mark.parametrize("make", WRITERS)
def test_a_program_that_never_says_ready_is_given_up(host: Lab, make: type[OpensshWriter]) -> None:
    with connect("lab", files=host.files) as session, pytest.raises(TimedOut):
        make(session, ["sleep", "5"], timeout=0.5)


def test_the_openssh_client_is_as_strict_as_the_session(host: Lab) -> None:
    with connect("lab", files=host.files) as session, LaneServer(host.folder) as server:
        host.known_hosts.write_text("")
        host.write_config("StrictHostKeyChecking no")
        with pytest.raises(LinkLost, match="verification failed"):
            OpensshWriter(session, host.lane_argv(server.expect(), server.path))


def test_a_wrong_token_opens_no_lane(host: Lab) -> None:
    with connect("lab", files=host.files) as session, LaneServer(host.folder) as server:
        server.expect()
        with pytest.raises(LinkLost, match="refused"):
            OpensshWriter(session, host.lane_argv("0" * 64, server.path))


def test_a_token_works_once(host: Lab) -> None:
    with connect("lab", files=host.files) as session, LaneServer(host.folder) as server:
        token = server.expect()
        writer = OpensshWriter(session, host.lane_argv(token, server.path))
        reader = server.accept(token, 5)
        with pytest.raises(LinkLost):
            OpensshWriter(session, host.lane_argv(token, server.path))
        writer.abort()
        reader.abort()


def test_rubbish_on_the_agents_socket_changes_nothing(host: Lab) -> None:
    with connect("lab", files=host.files) as session, LaneServer(host.folder) as server:
        for rubbish in (b"\xff" * 64, b"", b"short"):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(server.path))
                stranger.sendall(rubbish)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(10) == b""
        token = server.expect()
        writer = ParamikoWriter(session, host.lane_argv(token, server.path))
        server.accept(token, 5).abort()
        writer.abort()


def test_a_lane_process_without_an_agent_ends_with_an_error(host: Lab) -> None:
    program = REPO / "tests" / "contract" / "lane_process.py"
    done = subprocess.run(
        [sys.executable, str(program), "0" * 64, str(host.folder / "nobody")],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_lane_that_nobody_accepts_ends_with_the_server(host: Lab) -> None:
    with connect("lab", files=host.files) as session:
        with LaneServer(host.folder) as server:
            writer = OpensshWriter(session, host.lane_argv(server.expect(), server.path))
        with pytest.raises(TransportFault):
            writer.finish(10)


# ── TLS ──


def test_a_stranger_at_the_tls_port_gets_nothing_and_the_right_one_still_comes() -> None:
    here, there, stranger = Identity.new(), Identity.new(), Identity.new()
    with TlsListener("127.0.0.1", there, here.certificate) as listener:
        with socket.create_connection(("127.0.0.1", listener.port)) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(LinkLost):
            TlsWriter("127.0.0.1", listener.port, stranger, there.certificate)
        writer = TlsWriter("127.0.0.1", listener.port, here, there.certificate)
        reader = listener.accept(5)
        writer.abort()
        reader.abort()


def test_a_false_listener_is_not_trusted() -> None:
    here, there, imposter = Identity.new(), Identity.new(), Identity.new()
    with (
        TlsListener("127.0.0.1", imposter, here.certificate) as listener,
        pytest.raises(LinkLost),
    ):
        TlsWriter("127.0.0.1", listener.port, here, there.certificate)


def test_a_cut_tls_connection_is_told_apart_from_the_end() -> None:
    here, there = Identity.new(), Identity.new()
    with TlsListener("127.0.0.1", there, here.certificate) as listener:
        writer = TlsWriter("127.0.0.1", listener.port, here, there.certificate)
        reader = listener.accept(5)
    os.write(writer.fd, b"some")
    assert os.read(reader.fd, 100) == b"some"
    writer.abort()
    assert os.read(reader.fd, 100) == b""
    with pytest.raises(LinkLost):
        reader.finish(5)


def test_a_port_that_cannot_be_reached_says_so_quickly() -> None:
    here, there = Identity.new(), Identity.new()
    with TlsListener("127.0.0.1", there, here.certificate) as listener:
        port = listener.port
    with pytest.raises(Unreachable):
        TlsWriter("127.0.0.1", port, here, there.certificate)


def test_a_listener_that_nobody_comes_to_is_given_up() -> None:
    here, there = Identity.new(), Identity.new()
    with TlsListener("127.0.0.1", there, here.certificate) as listener, pytest.raises(TimedOut):
        listener.accept(0.2)


def test_the_arrival_address_is_taken_from_sshd(host: Lab) -> None:
    with (
        connect("lab", files=host.files) as session,
        session.open_command(["sh", "-c", "echo $SSH_CONNECTION"]) as process,
    ):
        assert arrival_address(process.receive(200, 10).decode()) == "127.0.0.1"
    with pytest.raises(TransportFault):
        arrival_address("")


# ── opening ──


class Refusing(LaneHost):
    """A destination that has no tls lane to offer."""

    def offer(self, ask: Message) -> Message:
        return make("lane_offer", kind="tls") if ask["kind"] == "tls" else super().offer(ask)


class BehindAFirewall(LaneHost):
    """A destination whose port a firewall closes."""

    def offer(self, ask: Message) -> Message:
        offer = super().offer(ask)
        return offer | {"port": 1} if ask["kind"] == "tls" else offer


@pytest.mark.parametrize(
    ("make_host", "expected"),
    [(LaneHost, "tls"), (Refusing, "openssh"), (BehindAFirewall, "openssh")],
)
def test_the_best_lane_that_can_be_opened_is_taken(
    host: Lab, make_host: type[LaneHost], expected: str
) -> None:
    arrived = "127.0.0.1 1 127.0.0.1 22"
    with (
        connect("lab", files=host.files) as session,
        make_host(host.folder, arrived) as there,
    ):
        writer = open_lane(session, there.offer, host.lane_argv)
        assert writer.kind == expected
        reader = there.accept(writer.token, 5)
        os.write(writer.fd, b"hello")
        with ThreadPoolExecutor(1) as pool:
            finishing = pool.submit(writer.finish, 10)
            assert os.read(reader.fd, 100) == b"hello"
            assert os.read(reader.fd, 100) == b""
            reader.finish(5)
            finishing.result(10)


def test_when_no_lane_can_be_opened_the_last_reason_is_told(host: Lab) -> None:
    with connect("lab", files=host.files) as session, LaneHost(host.folder) as there:
        with pytest.raises(RemoteMissing):
            open_lane(session, there.offer, lambda token, path: ["no-such-ckpt", token])
        with pytest.raises(LinkLost, match="false"):
            open_lane(session, there.offer, lambda token, path: ["false", token])
        with pytest.raises(LinkLost, match="doesn't offer"):
            open_lane(session, there.offer, host.lane_argv, kinds=["tls"])


def test_lanes_go_through_jump_hosts_as_the_session_does(host: Lab) -> None:
    jump = Sshd(host.folder / "jump", host.key)
    try:
        host.write_config(
            "ProxyJump jump", hosts=f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n"
        )
        host.known_hosts.write_text(host.sshd.known_hosts_lines() + jump.known_hosts_lines())
        with (
            connect("lab", files=host.files) as session,
            LaneHost(host.folder) as there,
        ):
            before = len(jump.sessions())
            writer = open_lane(session, there.offer, host.lane_argv, kinds=["openssh"])
            assert len(jump.sessions()) > before
            there.accept(writer.token, 5).abort()
            writer.abort()
            host.known_hosts.write_text(host.sshd.known_hosts_lines())
            with pytest.raises(LinkLost):  # the jump host's key is checked too
                open_lane(session, there.offer, host.lane_argv, kinds=["openssh"])
    finally:
        jump.stop()
