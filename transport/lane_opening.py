"""Opening a lane: ask, offer, connect, and the next kind when one can't be opened.  The other end: lane_host.py.

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

from transport.errors import ProtocolFault, RemoteMissing, TransportFault
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsWriter
from transport.lanes import PREFERENCE, LaneWriter, broken
from transport.messages import Message, make
from transport.ssh import Session

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 4.0  # for a port that a firewall may swallow without a word

LaneArgv = Callable[[str, str], Sequence[str]]


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
