"""Commands that ckpt itself calls."""

from __future__ import annotations

import click

from ckpt.cli.types import command
from ckpt.ops import lifecycle
from ckpt.ops.host import Host


@click.group("internal", hidden=True)
def internal() -> None:
    """Not for people."""


@command("ended")
@click.argument("identity")
def ended(host: Host, identity: str) -> None:
    """A monitor's last act: its container has ended."""
    lifecycle.ended(host, identity)


internal.add_command(ended)
COMMANDS = [internal]
