"""Offering lanes and accepting them: the destination's end of lane_opening.py.

A module of its own since the source's end needs paramiko, whose import would take a quarter of an agent's start.
"""

from __future__ import annotations

import logging
from pathlib import Path

from transport.errors import TransportFault
from transport.lane_handover import LaneServer
from transport.lane_tls import Identity, TlsListener, arrival_address
from transport.lanes import LaneReader
from transport.messages import Message, make

log = logging.getLogger(__name__)


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
