"""ps, logs: what is looked at often, without what changes containers."""

from __future__ import annotations

import sys

import click

from ckpt.cli import show
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.ops.host import Host
from ckpt.ops.listing import summary
from ckpt.ops.logs import log_lines
from runtime.container.record import LIVE


@command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that don't run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@json_option
def ps(host: Host, everything: bool, quiet: bool, as_json: bool) -> None:
    """List containers."""
    found = [summary(container) for container in host.containers()]
    if not everything:
        found = [one for one in found if one["state"] in LIVE]
    if as_json:
        show.emit_json(found)
    elif quiet:
        for one in found:
            click.echo(one["name"])
    else:
        show.table(
            ("NAME", "ID", "STATE", "CREATED", "ADDRESS", "COMMAND"),
            (
                (
                    one["name"],
                    one["id"],
                    one["state_text"],
                    show.ago(one["created_ns"]),
                    ",".join(one["addresses"]) or "-",
                    " ".join(one["args"])[:60],
                )
                for one in found
            ),
        )


@command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes.")
@click.option("-n", "--tail", type=click.IntRange(0), help="Only the last lines.")
@click.option("-t", "--timestamps", is_flag=True)
@click.option("--job", type=int, default=0, help="The log of a job.")
@click.argument("name", type=CONTAINER)
def logs(host: Host, name: str, follow: bool, tail: int | None, timestamps: bool, job: int) -> None:
    """What a container wrote."""
    for stream, line in log_lines(
        host.find(name), job=job, follow=follow, tail=tail, stamps=timestamps
    ):
        target = sys.stderr if stream == "stderr" else sys.stdout
        target.buffer.write(line)
        target.flush()


COMMANDS = [ps, logs]
