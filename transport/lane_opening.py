"""Opening a lane: ask, offer, connect, and the next kind when one can't be opened.

    source                                     destination
    lane_ask {kind, certificate} ────────────▶ LaneHost.offer
    ◀──────────────────── lane_offer {token, how to open it}
    open_lane connects by that ══════════════▶ LaneHost.accept(token)

The token names the lane in later messages (``sync_begin``'s facts, say): the source tells which
lane carries what, and the destination accepts just that one.  An offer that nobody takes costs a
little until the LaneHost is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from transport.errors import ProtocolFault, RemoteMissing, TransportFault
from transport.lane_handover import LaneServer
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsListener, TlsWriter, arrival_address
from transport.lanes import PREFERENCE, LaneReader, LaneWriter, broken
from transport.messages import Message, make
from transport.ssh import Session

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 4.0  # for a port that a firewall may swallow without a word

LaneArgv = Callable[[str, str], Sequence[str]]


class LaneHost:
    """The destination's end: makes offers, hands out lanes.  ``close()`` it."""

    def __init__(self, folder: Path, ssh_connection: str = "") -> None:
        """``folder``: our own (0700), short path.  ``ssh_connection``: $SSH_CONNECTION, for tls."""
        self._server = LaneServer(folder)
        self._ssh_connection = ssh_connection
        self._listeners: dict[str, TlsListener] = {}

    def offer(self, ask: Message) -> Message:
        """The ``lane_offer`` for a ``lane_ask``; one without token says: not this kind."""
        kind = ask["kind"]
        if kind == "tls":
            try:
                address = arrival_address(self._ssh_connection)
                there = Identity.new()
                listener = TlsListener(address, there, ask["certificate"])
            except TransportFault as fault:
                log.info("no tls lane: %s", fault)
                return make("lane_offer", kind=kind)
            token = self._server.expect()  # only as a name: no lane process will show it
            self._listeners[token] = listener
            return make(
                "lane_offer",
                kind=kind,
                token=token,
                address=address,
                port=listener.port,
                certificate=there.certificate,
            )
        if kind in ("openssh", "paramiko"):
            return make(
                "lane_offer", kind=kind, token=self._server.expect(), socket=str(self._server.path)
            )
        return make("lane_offer", kind=kind)

    def accept(self, token: str, timeout: float) -> LaneReader:
        """The lane of that name.  Raises TimedOut; the offer is gone then."""
        listener = self._listeners.pop(token, None)
        if listener is None:
            return self._server.accept(token, timeout)
        with listener:
            return listener.accept(timeout)

    def close(self) -> None:
        """Offers that nobody took are withdrawn; accepted lanes go on."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._server.close()

    def __enter__(self) -> LaneHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_lane(
    session: Session,
    ask: Callable[[Message], Message],
    lane_argv: LaneArgv,
    *,
    kinds: Sequence[str] = PREFERENCE,
) -> LaneWriter:
    """The first kind of lane that can be opened; its ``token`` is its name for the peer.

    ``ask`` sends a ``lane_ask`` and returns the ``lane_offer``.  ``lane_argv(token, socket)`` is
    the command that must run at the destination for a lane inside SSH.  Raises what ``ask``
    raises, RemoteMissing, and the last kind's reason when none could be opened.
    """
    last: TransportFault = broken("bulk", "no kind of lane was allowed")
    for kind in kinds:
        identity = Identity.new() if kind == "tls" else None
        certificate = identity.certificate if identity else b""
        offer = ask(make("lane_ask", kind=kind, certificate=certificate))
        if offer.get("type") != "lane_offer" or offer["kind"] != kind:
            raise ProtocolFault(
                doing="opening", target="a lane", why=f"expected an offer of kind {kind!r}"
            )
        token = offer["token"]
        if not token:
            last = broken(kind, "the other host doesn't offer it")
            continue
        try:
            writer: LaneWriter
            if identity is not None:
                address = session.direct_address or offer["address"]
                writer = TlsWriter(
                    address, offer["port"], identity, offer["certificate"], timeout=_CONNECT_TIMEOUT
                )
            elif kind == "openssh":
                writer = OpensshWriter(session, lane_argv(token, offer["socket"]))
            else:
                writer = ParamikoWriter(session, lane_argv(token, offer["socket"]))
        except RemoteMissing:
            raise
        except TransportFault as fault:
            log.info("no %s lane: %s", kind, fault)
            last = fault
            continue
        writer.token = token
        return writer
    raise last
