"""What can be asked of a monitor over its control socket. Only the functions in REQUESTS can be called from there."""

from __future__ import annotations

import contextlib
import json
import os
import signal

from runtime.monitor import handover, inside, jobs
from runtime.stage import first

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from runtime.monitor.clients import Client
    from runtime.monitor.monitor import Monitor
    from runtime.monitor.process import Process

    Request = dict[str, Any]


def handle(monitor: Monitor, client: Client, packet: bytes) -> None:
    """One packet of a client: a request, or on an attached connection a piece of its stream."""
    if not packet.startswith(b"{"):
        process = monitor.processes.get(client.attached) if client.attached is not None else None
        if process is not None:
            # A signal for what has just ended, a terminal that is gone: as on any terminal.
            with contextlib.suppress(OSError, ValueError, KeyError):
                _stream(monitor, process, packet[:1], packet[1:])
        return
    try:
        request = json.loads(packet)
        function = REQUESTS[request["op"]]
    except (ValueError, KeyError, TypeError):
        client.answer(error="unknown request")
        return
    try:
        function(monitor, client, request)
    except (OSError, ChildProcessError, KeyError, TypeError) as error:
        client.answer(error=first.explain(error, request["op"]))


def _stream(monitor: Monitor, process: Process, kind: bytes, data: bytes) -> None:
    if kind == b"i":
        process.feed(data)
    elif kind == b"k":
        _signal(monitor, monitor.number_of(process), int(data))
    elif kind == b"w":
        rows, columns = (int(part) for part in data.split(b","))
        inside.resize(monitor.init_pid, process.streams.ours["stdout"], rows, columns)


def _signal(monitor: Monitor, job: int, number: int) -> None:
    """Signal a job, or with 0 the container: through its init, which passes on all but KILL and STOP.

    KILL is meant for the whole container. STOP would stop the init alone, so it goes to the command itself.
    """
    if not job and number == signal.SIGSTOP:
        job = monitor.status.values["main_pid"]
    if job:
        inside.send_signal(monitor.init_pid, job, number)
    else:
        os.kill(monitor.init_pid, number)


def go(monitor: Monitor, client: Client, request: Request) -> None:
    """The network is plugged in: pid 1 may mount and wait."""
    if monitor.building is not None:
        monitor.building.go_on()


def start(monitor: Monitor, client: Client, request: Request) -> None:
    if monitor.status.state != "created" or monitor.building is None:
        client.answer(error=f"the container is {monitor.status.state}, not created")
        return
    monitor.starter = client  # who asks to start is told what comes of it
    monitor.building.go_on()


def state(monitor: Monitor, client: Client, request: Request) -> None:
    client.answer(**monitor.status.values)


def kill(monitor: Monitor, client: Client, request: Request) -> None:
    job = request.get("job", 0)
    if monitor.restoring is not None and monitor.restoring.criu_pid and not monitor.init_pid:
        os.kill(monitor.restoring.criu_pid, signal.SIGKILL)
    elif job and job not in monitor.processes:
        client.answer(error=f"there is no job {job} that runs")
        return
    elif monitor.init_pid:
        _signal(monitor, job, request["signal"])
    client.answer(ok=True)


def wait(monitor: Monitor, client: Client, request: Request) -> None:
    """Answer {"ended"} once the container (job 0) or a job has ended."""
    job = request.get("job", 0)
    if job and job not in monitor.processes:
        done = monitor.status.jobs.get(str(job))
        client.answer(**({"ended": done} if done else {"error": f"there is no job {job}"}))
        return
    client.waits_for = job


def attach(monitor: Monitor, client: Client, request: Request) -> None:
    job = request.get("job", 0)
    process = monitor.processes.get(job)
    if process is None:
        client.answer(error=f"there is no job {job} that runs")
        return
    client.attached = job
    client.answer(attached=job, terminal=process.terminal, stdin="stdin" in process.streams.ours)
    process.clients.append(client)


def exec_(monitor: Monitor, client: Client, request: Request) -> None:
    if monitor.quiesced is not None:
        client.answer(error="the container is being dumped; try again")
    elif monitor.status.state != "running":
        client.answer(error=f"the container is {monitor.status.state}, not running")
    elif len(monitor.processes) > jobs.MOST:
        client.answer(error=f"{jobs.MOST} jobs are running already")
    else:
        jobs.start(monitor, client, request)


def quiesce(monitor: Monitor, client: Client, request: Request) -> None:
    """A dump begins: no new jobs; the answer names the pipes that the checkpoint must remember."""
    if monitor.status.state != "running":
        client.answer(error=f"the container is {monitor.status.state}, not running")
        return
    if monitor.quiesced is not None:
        client.answer(error="another dump of this container is under way")
        return
    monitor.quiesced = {"reason": request["reason"], "client": client}
    monitor.environment.update(request.get("environment", {}))
    own = monitor.plan["process"]
    client.answer(
        streams=[entry for p in monitor.processes.values() for entry in p.streams.describe()],
        processes={
            str(number): {
                "terminal": process.terminal,
                "uid": process.info["uid"] if number else own["uid"],
                "gid": process.info.get("gid", 0) if number else own["gid"],
                "info": process.info,
            }
            for number, process in monitor.processes.items()
        },
        main_pid=monitor.status.values["main_pid"],
        started_ns=monitor.status.values["started_ns"],
        init_pid=monitor.init_pid,
    )


def resume(monitor: Monitor, client: Client, request: Request) -> None:
    """The dump is over and the container runs on. Unfinished: the dumper has still to complete the checkpoint."""
    monitor.quiesced = None
    client.unfinished = request.get("unfinished", False)
    client.answer(ok=True)


def finished(monitor: Monitor, client: Client, request: Request) -> None:
    """Now the checkpoint is complete, or its dumper has removed it."""
    client.unfinished = False
    client.answer(ok=True)


def verdict(monitor: Monitor, client: Client, request: Request) -> None:
    if monitor.restoring is None or not monitor.restoring.waits:
        client.answer(error="no hook waits for a word")
    else:
        monitor.restoring.verdict(request["status"])


def hold(monitor: Monitor, client: Client, request: Request) -> None:
    """What is restored waits for a word, whoever brings it, and outlives who prepared it."""
    if monitor.restoring is None:
        client.answer(error="nothing is being restored")
        return
    if not monitor.restoring.alive():
        client.answer(error="CRIU has ended")
        return
    monitor.restoring.held = True
    client.answer(ok=True)


def take_over(monitor: Monitor, client: Client, request: Request) -> None:
    """Recovery: from now on this client is told what happens, and gives the word."""
    monitor.starter = client
    restoring = monitor.restoring
    client.answer(
        held=restoring is not None and restoring.held,
        waits=restoring is not None and restoring.waits,
        action=restoring.action if restoring is not None else "",
        state=monitor.status.state,
    )


def care(monitor: Monitor, client: Client, request: Request) -> None:
    """This client frees what the container held when it has ended, and then says so: {"op": "done"}."""
    monitor.caretaker = client
    client.answer(ok=True)


REQUESTS = {
    "care": care,
    "go": go,
    "start": start,
    "state": state,
    "kill": kill,
    "wait": wait,
    "attach": attach,
    "exec": exec_,
    "finished": finished,
    "quiesce": quiesce,
    "settle": handover.settle,
    "carry_on": handover.carry_on,
    "resume": resume,
    "verdict": verdict,
    "hold": hold,
    "take_over": take_over,
}
