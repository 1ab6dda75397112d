"""The first process of a container, from the monitor's fork to the static init's exec.

    monitor                      stage (forked)                       pid 1 (forked by stage)
       │── fork ─────────────────▶│ join cgroups, unshare user
       │◀────────── {"maps"} ─────│
       │ write id maps ── "ok" ──▶│ become root in it, unshare the rest
       │                          │── fork ───────────────────────────▶│ waits
       │◀────────── {"pid": N} ───│ exit
       │ network is plugged in ── "go" ───────────────────────────────▶│ mounts, pivot, hostname
       │◀─────────────────────────────────────────────── {"ready"} ────│ waits (the container is "created")
       │── "start" ───────────────────────────────────────────────────▶│ hooks, limits, credentials, exec of init
       │◀──────────────────────────── end of file ─────────────────────│ (the channel closes on exec)

All on one SOCK_SEQPACKET pair. {"error": text} may come instead of any answer, and ends the sender.
"""

from __future__ import annotations

import json
import os
import socket

from runtime import syscalls
from runtime.stage import execute, hooks, mounts

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

ENDED = "the other side ended without a word"


def tell(channel: socket.socket, **message: object) -> None:
    channel.send(json.dumps(message).encode())


def hear(channel: socket.socket) -> dict[str, Any]:
    """The next message; raises ChildProcessError if the other side failed or is gone."""
    data = channel.recv(1 << 16)
    if not data:
        raise ChildProcessError(ENDED)
    message: dict[str, Any] = json.loads(data)
    if "error" in message:
        raise ChildProcessError(message["error"])
    return message


def explain(error: BaseException, doing: str) -> str:
    if isinstance(error, OSError) and error.errno:
        about = f" {error.filename}" if error.filename else ""
        return f"{doing}:{about} {error.strerror}"
    return f"{doing}: {error}"


def run(plan: dict[str, Any], root: str, channel: socket.socket, stdio: dict[int, int]) -> None:
    """The forked child's whole life. Never returns."""
    doing = "starting"
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        doing = "joining the cgroups"
        mounts.join_cgroups(plan["cgroup_procs"])
        doing = "making the namespaces"
        if plan["userns"]:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            tell(channel, maps=True)
            hear(channel)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            os.setgroups([])
        syscalls.unshare(plan["clone_flags"])
        pid = os.fork()
        if pid:
            tell(channel, pid=pid)
            os._exit(0)
        # The monitor may outlive or die before us; pid 1's death signal is the monitor's to give.
        os.setsid()
        hear(channel)
        doing = "mounting the file systems"
        execute.seal_imports()
        mounts.enter_root(
            plan, root, before_pivot=lambda: _hooks(plan, "createContainer", "creating")
        )
        doing = "setting the host name"
        if plan["hostname"]:
            syscalls.sethostname(plan["hostname"])
        if plan["domainname"]:
            syscalls.setdomainname(plan["domainname"])
        tell(channel, ready=True)
        hear(channel)
        process = plan["process"]
        doing = "running the startContainer hooks"
        _hooks(plan, "startContainer", "created")
        doing = "changing to the working directory"
        execute.change_directory(process)
        doing = "taking on limits and credentials"
        execute.reset_signals()
        channel = execute.keep_only(stdio, channel)
        execute.become(process)
        doing = "executing the init"
        execute.execute(execute.argv_of(process, under_init=True), process["env"])
    except BaseException as error:
        try:
            tell(channel, error=explain(error, doing))
        finally:
            os._exit(125)


def _hooks(plan: dict[str, Any], kind: str, status: str) -> None:
    """Hooks that run in the container's namespaces see its pids (runtime-spec, runtime.md "State")."""
    hooks.run(
        plan["hooks"].get(kind, []), {**plan["hook_state"], "status": status, "pid": os.getpid()}
    )
