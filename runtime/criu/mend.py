"""What a CRIU that was killed in the middle of a dump leaves on the tasks, and taking it away.

The kernel lets go of ptraced tasks when their tracer dies, and CRIU's parasite cures its host when its socket closes.
Two things stay, and would cut off every client of a container that otherwise runs on:

- the sockets are in TCP repair mode (tcp(7) doesn't tell of it; `tcp_can_repair_sock` in the kernel): a write fails
  with EINVAL. It ends with TCP_REPAIR 0, set on a duplicate of each socket (pidfd_getfd(2));
- the network lock, a table `inet CRIU-PID` in the container's network namespace, drops every packet.

A CRIU that fails by itself undoes both; then this finds nothing to do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable

from runtime import syscalls
from runtime.errors import RuntimeFault
from runtime.network.plug import inside_of
from runtime.programs import run

log = logging.getLogger(__name__)

TCP_REPAIR = 19
_TABLE = "CRIU-"


def wait_untraced(pids: Iterable[int], limit: float) -> bool:
    """Whether within LIMIT seconds nobody traces any of PIDS any more: CRIU has let go, or is dead."""
    until = time.monotonic() + limit
    while any(map(_tracer, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def mend(pids: list[int], *, own_network: bool) -> list[str]:
    """Make the tasks reachable again; returns what was done, a line each. Idempotent.

    PIDS: every process of the container. OWN_NETWORK: it has a network namespace of its own.
    """
    done = []
    repaired = sum(_repair_off(pid) for pid in pids)
    if repaired:
        done.append(f"{repaired} sockets were in repair mode")
    for pid in pids[:1] if own_network else []:
        with contextlib.suppress(RuntimeFault, OSError, ValueError):
            done += _unlock(pid)
    for line in done:
        log.info("mended: %s", line)
    return done


def _tracer(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("TracerPid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _repair_off(pid: int) -> int:
    """How many sockets of a process were in repair mode; they aren't any more."""
    found = 0
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        handle = os.pidfd_open(pid)
    except OSError:
        return 0  # it ended
    try:
        for name in names:
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
                with socket.socket(fileno=syscalls.pidfd_getfd(handle, int(name))) as ours:
                    found += _end_repair(ours)
    finally:
        os.close(handle)
    return found


def _end_repair(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    if not sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
        return False
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    return True


def _unlock(pid: int) -> list[str]:
    """Remove CRIU's network lock from the network namespace of PID."""
    done = []
    with inside_of(pid):
        listed = run(["nft", "-j", "list", "tables"], what="listing the tables of a container")
        for entry in json.loads(listed.stdout)["nftables"]:
            table = entry.get("table", {})
            if table.get("family") == "inet" and str(table.get("name", "")).startswith(_TABLE):
                run(["nft", "delete", "table", "inet", table["name"]], what="unlocking a network")
                done.append(f"network lock {table['name']} was left")
    return done
