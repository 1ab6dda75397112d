"""Starting a job in the running container: the monitor's side of runtime/stage/job.py."""

from __future__ import annotations

import json
import os
import socket
import time

from runtime.monitor.process import Process
from runtime.stage import first, job

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from runtime.monitor.clients import Client
    from runtime.monitor.monitor import Monitor
    from runtime.monitor.streams import Streams

SAME = "same"
"""A job's filter is the container's own."""
MOST = 1024
"""Jobs that run at the same time in one container."""
LIMIT = 20.0
"""Seconds that the helper has to start the job, during which we serve nobody else."""


def start(monitor: Monitor, client: Client, request: dict[str, Any]) -> None:
    """Start it and answer {"job"}, or {"error", "code"}: 127 for a command that isn't there, else 126."""
    process = request["process"]
    if process["seccomp"] == SAME:
        own = monitor.plan["process"]
        process = {**process, "seccomp": own["seccomp"], "seccomp_flags": own["seccomp_flags"]}
    roles = ["stdin"] if request["stdin"] else []
    roles += ["stdout"] if process["terminal"] else ["stdout", "stderr"]
    streams = monitor.new_streams(0, roles, process["uid"], process["gid"])
    started, failed = _launch(monitor, process, streams)
    if failed is not None:
        streams.close_all()
        client.answer(**failed)
        return
    streams.job = started
    info = {
        "args": process["args"],
        "terminal": process["terminal"],
        "uid": process["uid"],
        "gid": process["gid"],
        "started_ns": time.time_ns(),
    }
    log = None if request["attach"] else monitor.job_log(started)
    made = Process(streams, log, terminal=process["terminal"], info=info)
    # Its end may have been reported already, but that waits in the status pipe until we are back in the loop.
    monitor.add(started, made)
    monitor.status.jobs[str(started)] = info
    monitor.status.forget_old_jobs()
    monitor.status.save()
    client.answer(job=started, terminal=process["terminal"])
    if request["attach"]:
        client.attached = started
        made.clients.append(client)


def _launch(
    monitor: Monitor, process: dict[str, Any], streams: Streams
) -> tuple[int, dict[str, Any] | None]:
    """The job's pid inside, and the answer that says why there is none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper = os.fork()
    if helper == 0:
        ours.close()
        inner = {**process, "cgroup_procs": monitor.plan["cgroup_procs"]}
        job.run(monitor.init_pid, inner, theirs, streams.inside(terminal=process["terminal"]))
    theirs.close()
    streams.close_theirs()
    with ours:
        ours.settimeout(LIMIT)
        try:
            said = json.loads(ours.recv(1 << 16) or b"{}")
            if "pid" not in said:
                return 0, {"error": said.get("error", first.ENDED), "code": said.get("code", 126)}
            data = ours.recv(1 << 16)  # the end of the channel: it was executed
            if data:
                failed = json.loads(data)
                return 0, {"error": failed["error"], "code": failed.get("code", 126)}
            return int(said["pid"]), None
        except OSError as error:
            return 0, {"error": first.explain(error, "starting the job"), "code": 126}
