"""start, stop, kill, rm, inspect, wait, rename."""

from __future__ import annotations

import json
import signal

import click

from ckpt.cli import show
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.ops import info, lifecycle
from ckpt.ops.host import Host, held_container
from runtime.errors import BadInput


@command("start")
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def start(host: Host, names: tuple[str, ...]) -> None:
    """Start containers that are created or have ended."""
    for name in names:
        with held_container(host, name) as container:
            lifecycle.start(host, container)
        click.echo(container.record.name)


@command("stop")
@click.option(
    "-t",
    "--time",
    "grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds until it is killed.",
)
@click.option(
    "-s", "--signal", "number", default="TERM", show_default=True, help="What asks it to end."
)
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def stop(host: Host, names: tuple[str, ...], grace: float, number: str) -> None:
    """Ask containers to end; kill them if they don't."""
    for name in names:
        with held_container(host, name) as container:
            lifecycle.stop(host, container, grace=grace, number=_signal(number))
        click.echo(container.record.name)


@command("kill")
@click.option("-s", "--signal", "number", default="KILL", show_default=True)
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def kill(host: Host, names: tuple[str, ...], number: str) -> None:
    """Send a signal to containers' first processes."""
    for name in names:
        lifecycle.kill(host.find(name), _signal(number))
        click.echo(name)


def _signal(text: str) -> int:
    try:
        if text.isdigit():
            if 1 <= int(text) < signal.NSIG:
                return int(text)
            raise KeyError
        return int(signal.Signals["SIG" + text.upper().removeprefix("SIG")])
    except KeyError:
        raise BadInput(
            doing="reading", target=f"signal {text!r}", why="there is none such"
        ) from None


@command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill it first.")
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def rm(host: Host, names: tuple[str, ...], force: bool) -> None:
    """Delete containers, with everything they wrote."""
    for name in names:
        with held_container(host, name) as container:
            lifecycle.remove(host, container, force=force)
        click.echo(container.record.name)


@command("inspect")
@click.argument("name", type=CONTAINER)
def inspect(host: Host, name: str) -> None:
    """Everything about a container, as JSON."""
    click.echo(json.dumps(info.details(host, host.find(name)), indent=2))


@command("wait")
@click.option("--job", type=int, default=0, help="Wait for a job instead.")
@json_option
@click.argument("name", type=CONTAINER)
def wait(host: Host, name: str, job: int, as_json: bool) -> None:
    """Wait until a container has ended; print its exit status."""
    end = lifecycle.wait(host.find(name), job)
    if as_json:
        show.emit_json(end)
    else:
        click.echo(end["exit_code"])


@command("rename")
@click.argument("name", type=CONTAINER)
@click.argument("new_name")
def rename(host: Host, name: str, new_name: str) -> None:
    """Give a container another name."""
    lifecycle.rename(host, host.find(name), new_name)


COMMANDS = [start, stop, kill, rm, inspect, wait, rename]
