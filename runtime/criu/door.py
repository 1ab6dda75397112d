"""Connections that nobody has accepted yet: the one state of TCP that CRIU cannot carry.

A connection in a listener's backlog belongs to no descriptor, so CRIU refuses to dump the listener (or, with
`--skip-in-flight`, forgets the connection, and its client is reset). A service that is alive accepts at once; it only
never gets done while new ones come. So shortly before the freeze the door is closed: the container's network drops the
first packet (SYN) of new connections from outside, whose clients send it again after a second, as they would for a
packet that meets the frozen container. The backlog runs empty, and then the dump begins.

Each host end needs nftables for this; without it we only wait. The table's name makes it one that aftermath.py removes
when we die in between.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from runtime import programs
from runtime.errors import RuntimeFault, Unsupported
from runtime.network.plug import inside_of

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a service has to accept what is waiting."""
_TABLE = {"family": "inet", "name": "CRIU-door"}
_LISTEN = "0A"


class Door:
    """Of the network namespace of process PID, which is TARGET's init. OUTSIDE: others can reach it."""

    def __init__(self, pid: int, target: str, *, outside: bool) -> None:
        self._outside = outside
        self._pid = pid
        self._target = target
        self._closed = False

    def close(self) -> None:
        """New connections from outside wait; then wait for the backlog to empty. Raises Unsupported if it doesn't."""
        if not listening(self._pid):
            return
        if self._outside:
            try:
                self._nft(_closing())
                self._closed = True
            except (RuntimeFault, OSError) as fault:
                log.info("new connections cannot be held back: %s", fault)
        until = time.monotonic() + PATIENCE
        while waiting := pending(self._pid):
            if time.monotonic() > until:
                ports = ", ".join(f"{count} at port {port}" for port, count in waiting.items())
                raise Unsupported(
                    doing="dumping",
                    target=self._target,
                    why=f"connections are not accepted by their service ({ports}), and cannot be carried so",
                    hint="the service may be overloaded or stuck; try again",
                    retry=True,
                )
            time.sleep(0.002)

    def open(self) -> None:
        """Let connections in again. Fine when it is open."""
        if self._closed:
            self._closed = False
            self._nft([{"add": {"table": _TABLE}}, {"delete": {"table": _TABLE}}])

    def _nft(self, commands: list[dict[str, object]]) -> None:
        with inside_of(self._pid):
            document = json.dumps({"nftables": commands}).encode()
            programs.run(["nft", "-j", "-f", "-"], stdin=document, what="holding connections with")


def listening(pid: int) -> bool:
    """Whether anything in the network namespace of PID takes TCP connections."""
    return any(state == _LISTEN for state, _, _ in _sockets(pid))


def pending(pid: int) -> dict[int, int]:
    """Connections that wait to be accepted, by port, in the network namespace of PID."""
    return {port: queue for state, port, queue in _sockets(pid) if state == _LISTEN and queue}


def _sockets(pid: int) -> list[tuple[str, int, int]]:
    """(state, port, bytes unread or for a listener connections waiting): proc_pid_net(5)."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            port, queue = fields[1].rpartition(":")[2], fields[4].rpartition(":")[2]
            found.append((fields[3], int(port, 16), int(queue, 16)))
    return found


def _closing() -> list[dict[str, object]]:
    place = {"family": _TABLE["family"], "table": _TABLE["name"]}
    chain = {**place, "name": "in", "type": "filter", "hook": "input", "prio": 0}
    outside = {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "lo"}
    flags = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack"]]}
    first = {"op": "==", "left": flags, "right": "syn"}
    rule = [{"match": outside}, {"match": first}, {"drop": None}]
    return [
        {"add": {"table": _TABLE}},
        {"add": {"chain": {**chain, "policy": "accept"}}},
        {"add": {"rule": {**place, "chain": "in", "expr": rule}}},
    ]
