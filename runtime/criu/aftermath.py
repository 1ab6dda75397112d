"""What a CRIU that was killed leaves behind in a container that runs on.

A dump that fails in good order cleans up after itself. One that is killed (our own watchdog against a stalled stream)
cannot: the tasks run again, as the guardian found them (see runtime/guard), but their network stays locked by CRIU's
nftables table, and connections it had looked at stay in TCP_REPAIR, where they neither send nor receive. Both are
undone here. Safe to call when there is nothing to undo.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterable

from runtime import syscalls
from runtime.errors import RuntimeFault
from runtime.network.plug import inside_of
from runtime.programs import run

log = logging.getLogger(__name__)

_TCP_REPAIR = 19  # linux/tcp.h; Python has no name for it
_TABLE = "CRIU-"


def release(pids: Iterable[int]) -> None:
    """Let the processes PIDS, which share one network namespace, communicate again. One that is gone is fine.

    Called on the way out of another error, so what fails here is only logged.
    """
    alive = list(pids)
    for pid in alive:
        with contextlib.suppress(OSError):
            _leave_repair(pid)
    for pid in alive:
        try:
            unlock(pid)
        except OSError:
            continue
        except RuntimeFault as fault:
            log.warning("%s", fault)
        return


def unlock(pid: int) -> list[str]:
    """Delete CRIU's tables in the network namespace of PID; returns their names."""
    with inside_of(pid):
        names = locked_tables()
        for name in names:
            run(["nft", "delete", "table", "inet", name], what="unlocking the network after")
    return names


def locked_tables() -> list[str]:
    """Names of CRIU's tables in this network namespace."""
    listed = run(["nft", "-j", "list", "tables"], what="listing the firewall's tables with")
    entries = json.loads(listed.stdout or b"{}").get("nftables", [])
    names = (str(entry["table"]["name"]) for entry in entries if "table" in entry)
    return [name for name in names if name.startswith(_TABLE)]


def _leave_repair(pid: int) -> None:
    """Take every TCP socket of PID out of repair mode (tcp(7) doesn't document it; see criu/soccr)."""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    with socket.socket(fileno=syscalls.pidfd_getfd(pidfd, int(name))) as one:
                        if one.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
                            one.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    finally:
        os.close(pidfd)
