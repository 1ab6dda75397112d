"""agent. Its start is a part of every migration: nothing is imported here that it doesn't need."""

from __future__ import annotations

import sys

import click

from ckpt import agent as agents
from ckpt.cli.threads import SWITCH
from ckpt.cli.types import command
from ckpt.ops.host import Host
from runtime.errors import BadInput
from transport.lane_handover import lane_main
from transport.protocol import Outcome


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
    sys.setswitchinterval(SWITCH)
    outcome = agents.serve(host)
    sys.exit(0 if outcome in (Outcome.MOVED, Outcome.WAITING, Outcome.ABORTED) else 1)


COMMANDS = [agent]
