"""The ``tls`` lane: TCP of its own beside the SSH session, with TLS 1.3.

Who may connect is settled inside the SSH session: each end makes a key and a self-signed
certificate for this one lane and tells the other the certificate.  Both ends then trust exactly
that one certificate and nothing else, and compare it byte by byte after the handshake.  So an
open port is no more of an entrance than the SSH session itself; keys live in memory and die with
the lane.

The listener is bound to the address on which the SSH connection arrived.  Where a firewall or a
jump host is between, connecting fails, and the caller takes another kind of lane.

End of data is TLS's close_notify, which a cut connection can't fake; the reader answers with its
own close_notify from ``finish``, and that is what the writer's ``finish`` waits for.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from transport.errors import ProtocolFault, TransportFault, Unreachable
from transport.lanes import (
    OPEN_TIMEOUT,
    LaneReader,
    LaneWriter,
    Worker,
    broken,
    bulk_pipe,
    overdue,
)

_KIND = "tls"
_CHUNK = 512 * 1024
_READY = b"R"
_VERDICT = b"\x06"  # ASCII ACK: all was read and is good
_WORD_CAME = "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"  # OpenSSL's name for it
_HANDSHAKE_TIMEOUT = 5.0
_DEAD_AFTER = 20.0  # seconds without an acknowledgement (TCP_USER_TIMEOUT), as for the session
_NAME = "ckpt-lane"


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate, for one lane."""

    key: bytes  # PEM, PKCS #8
    certificate: bytes  # DER: what the other end is told

    @staticmethod
    def new() -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        # The clocks of two hosts may differ, and the lane's life is the limit that counts.
        now = datetime.datetime.now(datetime.UTC)
        span = datetime.timedelta(days=3650)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - span)
            .not_valid_after(now + span)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return Identity(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.DER),
        )


def _context(role: int, identity: Identity, peer: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(role)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is pinned
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=peer)
    except (ssl.SSLError, ValueError) as problem:
        raise ProtocolFault(
            doing="reading", target="the peer's certificate", why=str(problem)
        ) from problem
    if role == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody comes back
    with _memory_file(identity) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _memory_file(identity: Identity):  # type: ignore[no-untyped-def]
    """Python's ssl takes a private key only from a file; this one never reaches a disk."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        pem = ssl.DER_cert_to_PEM_cert(identity.certificate).encode()
        os.write(fd, identity.key + pem)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_DEAD_AFTER * 1000))


def _pinned(sock: ssl.SSLSocket, peer: bytes) -> None:
    if sock.getpeercert(binary_form=True) != peer:
        raise broken(_KIND, "the peer showed another certificate than agreed")


class _End:
    """What both ends share: a TLS socket, a pipe, a pump, and ways to stop it."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.over = False
        self.aborted = False
        self.wake = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self, pump: Worker) -> None:
        """Stop the pump wherever it waits.  The socket is closed without a close_notify."""
        self.over = self.aborted = True
        os.eventfd_write(self.wake, 1)
        with contextlib.suppress(OSError):
            # Wakes a thread that waits in send or recv; close() alone would not.  By its
            # descriptor, as the TLS layer is not to be touched from two threads.
            raw = socket.socket(fileno=os.dup(self.sock.fileno()))
            with raw:
                raw.shutdown(socket.SHUT_RDWR)
        pump.join(10)
        self.sock.close()
        os.close(self.wake)


class TlsWriter(LaneWriter):
    kind = _KIND

    def __init__(
        self,
        address: str,
        port: int,
        identity: Identity,
        peer: bytes,
        *,
        timeout: float = OPEN_TIMEOUT,
    ) -> None:
        """Connect to the reader's listener.  Raises Unreachable, LinkLost, ProtocolFault."""
        context = _context(ssl.PROTOCOL_TLS_CLIENT, identity, peer)
        target = f"the tls lane at [{address}]:{port}"
        try:
            raw = socket.create_connection((address, port), timeout)
        except OSError as problem:
            raise Unreachable(
                doing="connecting to",
                target=target,
                why=problem.strerror or str(problem),
                hint="another kind of lane is used instead",
            ) from problem
        sock = None
        try:
            _tune(raw)
            sock = context.wrap_socket(raw)
            _pinned(sock, peer)
            # In TLS 1.3 a client is done before the server has checked its certificate.
            if sock.recv(1) != _READY:
                raise broken(self.kind, "the other end refused it")
            sock.settimeout(None)
        except (OSError, TransportFault) as problem:
            (sock or raw).close()
            if isinstance(problem, TransportFault):
                raise
            raise broken(self.kind, str(problem)) from problem
        self._end = _End(sock)
        self._reader, self.fd = bulk_pipe()
        self._pump = Worker(self.kind, self._run)

    def _run(self) -> None:
        sock, wake = self._end.sock, self._end.wake
        buffer = memoryview(bytearray(_CHUNK))
        try:
            poller = select.poll()
            poller.register(self._reader, select.POLLIN)
            poller.register(wake, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poller.poll()}
                if wake in ready:
                    raise broken(self.kind, "it was aborted")
                count = os.readv(self._reader, [buffer])
                if count == 0:
                    break
                sock.sendall(buffer[:count])
        finally:
            os.close(self._reader)
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Our close_notify, then their word that all came.  Their close_notify alone would not do: with Python
        3.11.2 unwrap() takes a mere end of the connection for one.
        """
        sock, wake = self._end.sock, self._end.wake
        sock.settimeout(0)
        try:
            sock.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as problem:
            if problem.reason != _WORD_CAME:
                raise
            # Having sent our close_notify, unwrap() looks whether theirs is there already, and met their word
            # instead, which is lost to recv(). They send nothing else; it was authenticated as all of TLS is.
            return
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN)
        poller.register(wake, select.POLLIN)
        while True:
            try:
                verdict = sock.recv(len(_VERDICT))
            except (ssl.SSLWantReadError, BlockingIOError):
                if wake in {fd for fd, _ in poller.poll()}:
                    raise broken(self.kind, "it was aborted") from None
                continue
            if verdict != _VERDICT:
                raise broken(self.kind, "the reader gave it up")
            return

    def finish(self, timeout: float) -> None:
        if self._end.over:
            raise broken(self.kind, "it was ended before")
        os.close(self.fd)
        self.fd = -1
        try:
            if not self._pump.join(timeout):
                raise overdue(self.kind, timeout)
            if self._pump.fault is not None:
                raise self._pump.fault
        finally:
            self.abort()

    def abort(self) -> None:
        if self._end.over:
            return
        self._end.stop(self._pump)
        if self.fd >= 0:
            os.close(self.fd)


class TlsReader(LaneReader):
    kind = _KIND

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._end = _End(sock)
        self.fd, self._writer = bulk_pipe()
        self._complete = False
        sock.setblocking(False)
        os.set_blocking(self._writer, False)
        self._pump = Worker(self.kind, self._run)

    def _run(self) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        try:
            while not self._complete:
                count = self._gather(buffer)
                if count:
                    self._pour(buffer[:count])
                elif not self._complete:
                    self._wait(self._end.sock.fileno(), select.POLLIN)
        finally:
            os.close(self._writer)  # end of file for whoever reads

    def _gather(self, buffer: memoryview) -> int:
        """What has arrived, up to a buffer full.  TLS gives one record (16 KiB) at a time; to
        write each into the pipe by itself costs more than to decrypt it."""
        filled = 0
        while filled < len(buffer):
            try:
                count = self._end.sock.recv_into(buffer[filled:])
            except ssl.SSLWantReadError:
                break
            if count == 0:
                self._complete = True
                break
            filled += count
        return filled

    def _pour(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._writer, data) :]
            except BlockingIOError:
                self._wait(self._writer, select.POLLOUT)

    def _wait(self, fd: int, what: int) -> None:
        poller = select.poll()
        poller.register(fd, what)
        poller.register(self._end.wake, select.POLLIN)
        poller.poll()
        if self._end.aborted:
            raise broken(self.kind, "it was aborted")

    def finish(self, timeout: float) -> None:
        if self._end.over:
            raise broken(self.kind, "it was ended before")
        try:
            if not self._pump.join(timeout):
                raise overdue(self.kind, timeout)
            if not self._complete:
                raise self._pump.fault or broken(self.kind, "it broke off")
            self._end.sock.settimeout(timeout)
            try:
                self._end.sock.sendall(_VERDICT)
                self._end.sock.unwrap()
            except OSError as problem:
                raise broken(self.kind, f"the other end is gone: {problem}") from problem
        finally:
            self.abort()

    def abort(self) -> None:
        if self._end.over:
            return
        # A pump that waits for room in the pipe needs the event; one in recv, the shutdown.
        self._end.stop(self._pump)
        os.close(self.fd)


class TlsListener:
    """Waits at the destination for the one writer that shows the agreed certificate."""

    def __init__(self, address: str, identity: Identity, peer: bytes) -> None:
        """Bind to ``address`` and a free port.  Raises TransportFault when that can't be."""
        self._peer = peer
        self._context = _context(ssl.PROTOCOL_TLS_SERVER, identity, peer)
        self._found = threading.Condition()
        self._reader: TlsReader | None = None
        self._closed = False
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, 0), family=family, backlog=8)
        except OSError as problem:
            raise Unreachable(
                doing="listening on", target=address, why=problem.strerror or str(problem)
            ) from problem
        self.address = address
        self.port: int = self._listener.getsockname()[1]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = Worker(_KIND + "-listener", self._serve)

    def _serve(self) -> None:
        with self._listener:
            while not self._closed:
                ready, _, _ = select.select([self._listener.fileno(), self._wake], [], [])
                if self._wake in ready:
                    return
                raw, _ = self._listener.accept()
                if self._greet(raw):
                    return

    def _greet(self, raw: socket.socket) -> bool:
        """Whether it was the one.  Strangers are dropped without a word."""
        sock = None
        try:
            _tune(raw)
            raw.settimeout(_HANDSHAKE_TIMEOUT)
            sock = self._context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)
            _pinned(sock, self._peer)
            sock.sendall(_READY)
            sock.settimeout(None)
        except (OSError, TransportFault):
            (sock or raw).close()
            return False
        with self._found:
            if self._closed:
                sock.close()
                return True
            self._reader = TlsReader(sock)
            self._found.notify_all()
        return True

    def accept(self, timeout: float) -> TlsReader:
        """The lane, when its writer has come.  Raises TimedOut.  The listener is closed then."""
        deadline = time.monotonic() + timeout
        with self._found:
            if not self._found.wait_for(lambda: self._reader is not None, timeout):
                raise overdue(_KIND, timeout)
            reader, self._reader = self._reader, None
        assert reader is not None
        self._thread.join(max(0.1, deadline - time.monotonic()))
        self.close()
        return reader

    def close(self) -> None:
        """A lane that nobody accepted ends; an accepted one goes on."""
        with self._found:
            if self._closed:
                return
            self._closed = True
            waiting, self._reader = self._reader, None
        os.eventfd_write(self._wake, 1)
        self._thread.join(2 * _HANDSHAKE_TIMEOUT)
        os.close(self._wake)
        if waiting is not None:
            waiting.abort()

    def __enter__(self) -> TlsListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def arrival_address(ssh_connection: str) -> str:
    """The address on which this SSH connection arrived, from $SSH_CONNECTION (sshd(8)).

    Raises ProtocolFault when it isn't one of sshd's.
    """
    words = ssh_connection.split()
    if len(words) != 4:
        raise ProtocolFault(
            doing="reading", target="SSH_CONNECTION", why="not started by an SSH server"
        )
    return words[2]
