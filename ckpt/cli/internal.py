"""Commands that ckpt itself calls."""

from __future__ import annotations

import click

from ckpt.cli.types import command
from ckpt.ops import journal, lifecycle
from ckpt.ops.host import Host


@click.group("internal", hidden=True)
def internal() -> None:
    """Not for people."""


@command("ended")
@click.argument("identity")
def ended(host: Host, identity: str) -> None:
    """A monitor's last act: its container has ended."""
    lifecycle.ended(host, identity)
    # It was killed by a migration that has died since?
    if any(map(journal.decided, journal.of_container(host.paths.journals, identity))):
        _carry_on(host, identity)


@command("abandoned")
@click.argument("identity")
def abandoned(host: Host, identity: str) -> None:
    """A monitor's call for help: whoever was dumping its container is gone."""
    _carry_on(host, identity)


def _carry_on(host: Host, identity: str) -> None:
    from ckpt.ops import recover  # with all of SSH: not for the end of every container

    recover.abandoned(host, identity)


internal.add_command(ended)
internal.add_command(abandoned)
COMMANDS = [internal]
