"""The destination's end of the lanes that run inside SSH.

    source                        destination
    ssh or a channel ─── sshd ──▶ lane process (``ckpt agent --lane TOKEN --socket PATH``)
                                        │ its stdin, over a Unix socket (SCM_RIGHTS)
                                        ▼
                                  agent: reads or splices from sshd's own descriptor

sshd starts a process per channel, which has the data as its standard input; the agent is another
process.  Copying from one to the other would cost as much as the network, so the lane process
hands its standard input over and stays only because sshd closes a channel when its process ends.
Its exit status is the reader's verdict: 0 when the agent has finished, and the SSH client at the
source shows that status.

The socket lies in the agent's own directory (mode 0700), takes only our own uid (SO_PEERCRED),
and a token works once.  The token is visible in the process list there, but useless without the
socket.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import socket
import struct
import threading
from array import array
from pathlib import Path

from transport.errors import LinkLost, TransportFault
from transport.lanes import LaneReader, broken, overdue

log = logging.getLogger(__name__)

READY = b"ckpt lane ready\n"
_VERDICT = b"F"
_TOKEN_BYTES = 32
_GREETING_TIMEOUT = 5.0
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


class HandedReader(LaneReader):
    """``fd`` is what sshd gave the lane process as standard input."""

    kind = "ssh"

    def __init__(self, fd: int, process: socket.socket) -> None:
        self.fd = fd
        self._process = process
        self._over = False

    def finish(self, timeout: float) -> None:
        if self._over:
            raise broken(self.kind, "it was ended before")
        try:
            self._process.settimeout(timeout)
            self._process.sendall(_VERDICT)
        except OSError as problem:
            raise broken(self.kind, f"the lane process is gone: {problem}") from problem
        finally:
            self.abort()

    def abort(self) -> None:
        if not self._over:
            self._over = True
            os.close(self.fd)
            self._process.close()


class LaneServer:
    """Takes descriptors from lane processes.  One thread, one socket in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """``folder`` belongs to us alone (0700); its path must be short (sun_path: 107 bytes)."""
        self.path = folder / "lanes.sock"
        self._changed = threading.Condition()
        self._expected: set[str] = set()
        self._arrived: dict[str, HandedReader] = {}
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(self.path))
            os.chmod(self.path, 0o600)
            self._listener.listen(16)
        except OSError as problem:
            self._listener.close()
            raise TransportFault(
                doing="listening on", target=str(self.path), why=problem.strerror or str(problem)
            ) from problem
        self._thread = threading.Thread(target=self._serve, name="ckpt-lane-server", daemon=True)
        self._thread.start()

    def expect(self) -> str:
        """A new token, for one lane."""
        token = secrets.token_hex(_TOKEN_BYTES)
        with self._changed:
            self._expected.add(token)
        return token

    def accept(self, token: str, timeout: float) -> HandedReader:
        """The lane for ``token``, when its process has come.  Raises TimedOut."""
        with self._changed:
            if not self._changed.wait_for(lambda: token in self._arrived, timeout):
                self._expected.discard(token)
                raise overdue("ssh", timeout)
            return self._arrived.pop(token)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            if self._closed:
                peer.close()
                return
            try:
                self._greet(peer)
            except (OSError, TransportFault) as problem:
                log.warning("a lane process was refused: %s", problem)
                peer.close()

    def _greet(self, peer: socket.socket) -> None:
        peer.settimeout(_GREETING_TIMEOUT)
        who = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(who)
        data, fds = _receive_with_fds(peer, 2 * _TOKEN_BYTES)
        try:
            with self._changed:
                known = [t for t in self._expected if hmac.compare_digest(t.encode(), data)]
                if uid != os.geteuid() or not known or len(fds) != 1 or self._closed:
                    raise broken("ssh", f"no lane is expected from uid {uid} with that token")
                peer.sendall(READY)
                self._expected.remove(known[0])
                self._arrived[known[0]] = HandedReader(fds.pop(), peer)
                self._changed.notify_all()
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Lanes that nobody accepted end; accepted ones go on."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting = list(self._arrived.values())
            self._arrived.clear()
        # close() alone doesn't wake accept(2) in another thread; a connection does.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as wake:
            wake.connect(str(self.path))
        self._thread.join(2 * _GREETING_TIMEOUT)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for reader in waiting:
            reader.abort()

    def __enter__(self) -> LaneServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _receive_with_fds(peer: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """As socket.recv_fds, which ignores its flags in Python 3.11: without MSG_CMSG_CLOEXEC a
    child that starts at that moment would inherit the lane and keep it open."""
    room = socket.CMSG_SPACE(4 * array("i").itemsize)
    data, ancillary, _, _ = peer.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def lane_main(token: str, socket_path: str) -> None:
    """The lane process: hand standard input to the agent and wait for its verdict.

    Returns when the agent has finished the lane (exit with 0).  Raises LinkLost when the agent
    gave it up or isn't there (exit with anything else).  Closes standard input, and writes one
    line to standard output when the agent has it: then the source knows that the lane stands.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        try:
            agent.settimeout(2 * _GREETING_TIMEOUT)
            agent.connect(socket_path)
            socket.send_fds(agent, [token.encode()], [0])
            # The agent must be the only one who holds it, so that its closing is seen by sshd.
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
            ready = agent.recv(len(READY))
            if ready != READY:
                raise broken("ssh", "the agent refused it")
            os.write(1, READY)
            agent.settimeout(None)
            verdict = agent.recv(1)
        except OSError as problem:
            raise LinkLost(
                doing="handing a lane to", target="the agent", why=str(problem)
            ) from problem
    if verdict != _VERDICT:
        raise broken("ssh", "the agent gave it up")
