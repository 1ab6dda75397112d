"""run, create, spec."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click

from ckpt.cli.flags import RUN, options, wish_of
from ckpt.cli.types import TAKES_COMMAND, command, inner_command
from ckpt.ops import create as creating
from ckpt.ops import execute, lifecycle
from ckpt.ops.host import Host
from runtime.container.record import Container
from runtime.errors import SystemFault


@command("run", context_settings=TAKES_COMMAND)
@options(RUN)
@click.option("-d", "--detach", is_flag=True, help="Don't wait for its end.")
@click.option("--rm", is_flag=True, help="Remove it when it has ended.")
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(host: Host, rootfs: str, args: tuple[str, ...], detach: bool, **flags: Any) -> None:
    """Run a command in a new container.

    ROOTFS is a directory, a tar archive (plain, gzip, zstd), or an OCI bundle with a config.json.

    \b
    ckpt run --rm -it ./debian -- bash
    ckpt run -d --name db --memory 1g -p 5432:5432 ./pg.tar.zst -- postgres -D /data
    """
    wish = wish_of(host, flags, rootfs, inner_command(args))
    if detach:
        container = creating.run(host, wish)
        click.echo(container.record.name)
        return
    attached = []

    def begin(container: Container) -> None:
        attached.append(execute.attach(host, container.record.name))
        lifecycle.start(host, container)

    name = creating.create(host, wish, then=begin).record.name
    control, terminal = attached[0]
    with control:
        if wish.remove:
            with contextlib.suppress(SystemFault):  # it has ended already
                control.send(op="care")
        end = execute.follow(control, terminal=terminal, stdin=wish.stdin)
        if wish.remove and "detached" not in end:
            lifecycle.remove_quietly(host, name)
            with contextlib.suppress(SystemFault):
                control.send(op="done")
    sys.exit(end["exit_code"])


@command("create", context_settings=TAKES_COMMAND)
@options(RUN)
@click.option("--rm", is_flag=True, help="Remove it when it has ended.")
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def create(host: Host, rootfs: str, args: tuple[str, ...], **flags: Any) -> None:
    """Make a container without starting its command.

    \b
    ckpt create --name web ./rootfs -- nginx -g 'daemon off;'
    ckpt start web
    """
    click.echo(creating.create(host, wish_of(host, flags, rootfs, inner_command(args))).record.name)


@command("spec", context_settings=TAKES_COMMAND)
@options(RUN)
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def spec(host: Host, rootfs: str, args: tuple[str, ...], **flags: Any) -> None:
    """Print the OCI spec that these flags produce."""
    click.echo(json.dumps(wish_of(host, flags, rootfs, inner_command(args)).spec, indent=2))


COMMANDS = [run, create, spec]
