"""Agreeing on a lane: the source asks for one kind after another, the agent offers it, until one stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ckpt.ops.conversation import Conversation
from transport.errors import TransportFault
from transport.lane_handover import LaneServer
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsListener, TlsWriter, arrival_address
from transport.lanes import PREFERENCE, LaneReader, LaneWriter
from transport.messages import Message
from transport.ssh import Session

log = logging.getLogger(__name__)
OPENING = 20.0


def open_lane(
    conversation: Conversation, session: Session, command: list[str], *, kinds: tuple[str, ...] = ()
) -> LaneWriter:
    """The fastest lane that can be had. COMMAND: how ckpt is started there. Raises the last kind's failure."""
    failure: TransportFault | None = None
    for kind in kinds or PREFERENCE:
        try:
            lane = _open(conversation, session, command, kind)
            log.info("the lane is of kind %s", kind)
            return lane
        except TransportFault as fault:
            log.info("no %s lane: %s", kind, fault)
            failure = fault
    assert failure is not None
    raise failure


def _open(
    conversation: Conversation, session: Session, command: list[str], kind: str
) -> LaneWriter:
    identity = Identity.new() if kind == "tls" else None
    certificate = identity.certificate if identity else b""
    conversation.tell("lane_ask", kind=kind, certificate=certificate)
    offer = conversation.answer_to("lane_offer", OPENING)
    if kind == "tls":
        assert identity is not None
        address = session.direct_address or offer["address"]
        return TlsWriter(address, offer["port"], identity, offer["certificate"], timeout=5.0)
    argv = [*command, "agent", "--lane", offer["token"], "--socket", offer["socket"]]
    if kind == "openssh":
        return OpensshWriter(session, argv)
    return ParamikoWriter(session, argv)


class LaneDesk:
    """The agent's side: answers what the source asks for. Close it."""

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self._conversation = conversation
        self._folder = folder
        self._server: LaneServer | None = None
        self._listener: TlsListener | None = None
        self._accept: Callable[[float], LaneReader] | None = None

    def on_ask(self, message: Message) -> None:
        """In the reader's thread: make an offer. An earlier one that was not taken up ends."""
        kind = message["kind"]
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if kind == "tls":
            identity = Identity.new()
            address = arrival_address(os.environ.get("SSH_CONNECTION", ""))
            listener = TlsListener(address, identity, message["certificate"])
            self._listener = listener
            self._accept = listener.accept
            self._conversation.tell(
                "lane_offer",
                kind=kind,
                address=address,
                port=listener.port,
                certificate=identity.certificate,
            )
            return
        if self._server is None:
            self._server = LaneServer(self._folder)
        token = self._server.expect()
        server = self._server
        self._accept = lambda timeout: server.accept(token, timeout)
        self._conversation.tell("lane_offer", kind=kind, token=token, socket=str(self._server.path))

    def accept(self, timeout: float) -> LaneReader:
        """The lane that the source has opened by now."""
        assert self._accept is not None
        return self._accept(timeout)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.close()
