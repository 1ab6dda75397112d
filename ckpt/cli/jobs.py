"""exec, attach, jobs."""

from __future__ import annotations

import sys

import click

from ckpt.cli import show
from ckpt.cli.types import CONTAINER, TAKES_COMMAND, command, inner_command, json_option
from ckpt.ops import execute
from ckpt.ops.host import Host


@command("exec", context_settings=TAKES_COMMAND)
@click.option("-d", "--detach", is_flag=True, help="Print the job's number and don't wait.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="A terminal.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE")
@click.option("-w", "--workdir", default="", help="Working directory; the container's otherwise.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]")
@click.argument("name", type=CONTAINER)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    host: Host,
    name: str,
    args: tuple[str, ...],
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    workdir: str,
    user: str,
) -> None:
    """Run a job in a running container.

    A job belongs to the container: it is dumped, restored and moved with it, and its exit status
    can be had wherever the container is (ckpt wait --job).

    \b
    ckpt exec -it web -- sh
    ckpt exec -d web -- backup.sh
    """
    job = execute.Job(inner_command(args), env, workdir, user, terminal=tty, stdin=interactive)
    control, number = execute.start_job(host, name, job, attach=not detach)
    with control:
        if detach:
            click.echo(number)
            return
        end = execute.follow(control, terminal=tty, stdin=interactive)
    sys.exit(end["exit_code"])


@command("attach")
@click.option("--job", type=int, default=0, help="Attach to a job instead.")
@click.option("--no-stdin", is_flag=True, help="Only watch.")
@click.argument("name", type=CONTAINER)
def attach(host: Host, name: str, job: int, no_stdin: bool) -> None:
    """Follow the streams of a container, from now on, until it ends."""
    control, terminal = execute.attach(host, name, job)
    with control:
        end = execute.follow(control, terminal=terminal, stdin=not no_stdin)
    sys.exit(end["exit_code"])


@command("jobs")
@json_option
@click.argument("name", type=CONTAINER)
def jobs(host: Host, name: str, as_json: bool) -> None:
    """The jobs of a container, running and ended."""
    found = host.find(name).status().values.get("jobs", {})
    if as_json:
        show.emit_json(found)
        return
    show.table(
        ("JOB", "STATE", "STARTED", "COMMAND"),
        (
            (
                number,
                f"exited ({one['exit_code']})" if "ended_ns" in one else "running",
                show.ago(one.get("started_ns", 0)),
                " ".join(one.get("args", ())),
            )
            for number, one in found.items()
        ),
    )


COMMANDS = [exec_, attach, jobs]
