"""A job: a process started later, which becomes a child of the container's pid 1.

The monitor forks a helper that joins the container's namespaces. Entering a pid namespace counts for children only,
so the helper forks a middle process, which is inside, and that forks the job and ends. The kernel gives an orphan to
the reaper of the pid namespace in which its parent ran: the container's pid 1, and not to the monitor, although that
is a subreaper. From then on the job is dumped, moved and reaped like any process of the container, and pid 1 reports
its exit status.
"""

from __future__ import annotations

import os
import socket

from runtime import syscalls
from runtime.stage import execute, first, mounts, namespaces

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any


def run(
    init_pid: int, process: dict[str, Any], channel: socket.socket, stdio: dict[int, int]
) -> None:
    """The forked helper's life: tells {"pid": the job's pid inside} or {"error"}. Never returns."""
    doing = "joining the cgroups"
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        mounts.join_cgroups(process["cgroup_procs"])
        doing = "joining the namespaces"
        execute.seal_imports()
        namespaces.enter(init_pid)
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            os._exit(0)
        if os.fork():
            os._exit(0)
        os.setsid()
        first.tell(channel, pid=os.getpid())
        doing = "changing to the working directory"
        os.chdir(process["cwd"])
        doing = "taking on limits and credentials"
        execute.reset_signals()
        channel = execute.keep_only(stdio, channel)
        execute.become(process)
        doing = "executing"
        execute.execute(execute.argv_of(process, under_init=False), process["env"])
    except BaseException as error:
        code = 126
        if isinstance(error, FileNotFoundError) and doing == "executing":
            code = 127
        try:
            first.tell(
                channel, error=first.explain(error, f"{doing} {process['args'][0]}"), code=code
            )
        finally:
            os._exit(code)
