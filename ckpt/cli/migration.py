"""migrate, agent, recover."""

from __future__ import annotations

import signal
import sys
import threading

import click

from ckpt import agent as agents
from ckpt.cli import show
from ckpt.cli.progress import MigrationProgress
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.ops import migrate as migrating
from ckpt.ops import recover as recovering
from ckpt.ops.host import Host
from runtime.errors import BadInput, SystemFault, TimedOut
from transport.lane_handover import lane_main
from transport.protocol import Outcome


@command("migrate")
@click.option(
    "--mode",
    type=click.Choice(["auto", "cold"]),
    default="auto",
    show_default=True,
    help="cold: the container stands still while its memory travels.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only preflight: what would refuse it, and nothing is touched."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1), metavar="S", help="Give up after so many seconds."
)
@click.option(
    "--lane",
    "lanes",
    multiple=True,
    type=click.Choice(["tls", "openssh", "paramiko"]),
    help="How the bytes travel; the fastest that works otherwise.",
)
@json_option
@click.argument("name", type=CONTAINER)
@click.argument("target", metavar="[USER@]HOST[:PORT]")
def migrate(
    host: Host,
    name: str,
    target: str,
    mode: str,
    dry_run: bool,
    timeout: float | None,
    lanes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Move a running container to another host.

    Whatever fails, exactly one copy runs. The other host needs ckpt, and its host key must be known.

    \b
    ckpt migrate web root@other
    ckpt migrate web root@other --dry-run
    """
    timers: list[threading.Timer] = []

    def begin(migration: migrating.Migration) -> None:
        def interrupted(number: int, _: object) -> None:
            migration.stop(
                SystemFault(doing="migrating", target=name, why="it was interrupted", retry=True)
            )

        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, interrupted)
        if timeout is not None:
            late = TimedOut(
                doing="migrating", target=name, why=f"not done in {timeout:g} s", retry=True
            )
            timers.append(threading.Timer(timeout, migration.stop, (late,)))
            timers[0].daemon = True
            timers[0].start()

    with MigrationProgress(quiet=as_json) as progress:
        try:
            report = migrating.migrate(
                host,
                name,
                target,
                dry_run=dry_run,
                lanes=lanes,
                progress=progress.show,
                on_begin=begin,
            )
        finally:
            for timer in timers:
                timer.cancel()
    if as_json:
        show.emit_json(report.to_dict())
    elif dry_run:
        click.echo(f"{name} can move to {target}: nothing speaks against it")
    else:
        click.echo(
            f"{name} runs at {target}: stood still for {show.millis(report.downtime_ns)}, "
            f"took {report.total_ns / 1e9:.2f} s, {show.size(report.bytes_total)} over the {report.lane} lane"
        )
        click.echo(
            f"  images {show.size(report.bytes_images)}, files {show.size(report.bytes_files)}, "
            f"layers {show.size(report.bytes_layers)}"
        )


@command("agent", hidden=True)
@click.option("--lane", "token", hidden=True)
@click.option("--socket", "path", hidden=True)
def agent(host: Host, token: str | None, path: str | None) -> None:
    """The other host's end of a migration, on standard input and output. Started by ckpt over SSH."""
    if token is not None:
        if path is None:
            raise BadInput(doing="reading", target="--lane", why="it needs --socket")
        lane_main(token, path)
        return
    outcome = agents.serve(host)
    sys.exit(0 if outcome in (Outcome.MOVED, Outcome.WAITING, Outcome.ABORTED) else 1)


@command("recover")
@click.option(
    "--assume",
    type=click.Choice(["committed", "aborted"]),
    help="Decide for a migration whose other host is gone for good.",
)
@json_option
@click.argument("migration", required=False)
def recover(host: Host, migration: str | None, assume: str | None, as_json: bool) -> None:
    """Finish what was interrupted: migrations, half-made containers, leftovers. Safe at any time.

    Without MIGRATION everything that this host knows of is looked at; meant for boot and cron.
    """
    found = recovering.recover(host, only=migration, assume=assume)
    if as_json:
        show.emit_json(found)
        return
    for one in found:
        click.echo(f"{one['what']}: {one['did']}")
    if not found:
        click.echo("nothing to recover")


COMMANDS = [migrate, agent, recover]
