"""What several commands share: decorators for common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ckpt.cli.edge import guarded
from ckpt.ops.host import Host
from runtime.errors import BadInput, RuntimeFault

pass_host: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Host)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value, for machines.")


class ContainerName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A name or the beginning of an id; completed from those that are there."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        root = ctx.find_root().params.get("root")
        try:
            names = [container.record.name for container in Host.here(root).containers()]
        except (RuntimeFault, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class CheckpointName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A checkpoint of the store."""

    name = "checkpoint"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        root = ctx.find_root().params.get("root")
        try:
            names = Host.here(root).store.names()
        except Exception:  # a completion must never fail loudly
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class HostName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A host's name (ckpt host add), or [USER@]HOST[:PORT]; completed from the names."""

    name = "host"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from ckpt.ops.hosts import Registry  # SSH's libraries: not for every command

        root = ctx.find_root().params.get("root")
        try:
            names = [one.name for one in Registry(Host.here(root)).all()]
        except (RuntimeFault, OSError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


CONTAINER = ContainerName()
HOST = HostName()
CHECKPOINT = CheckpointName()


# Everything after the container's name or root file system belongs to the command in it.
TAKES_COMMAND = {"allow_interspersed_args": False}


def inner_command(args: tuple[str, ...]) -> tuple[str, ...]:
    """The command line without the `--` that may stand before it. Raises BadInput for an option in its place."""
    if args[:1] == ("--",):
        return args[1:]
    if args and args[0].startswith("-"):
        raise BadInput(
            doing="reading",
            target=args[0],
            why="options come before the container; here its command begins",
            hint="-- before a command that begins with a dash",
        )
    return args


def command(
    name: str, **settings: Any
) -> Callable[[Callable[..., Any] | click.Command], click.Command]:
    """A click command whose faults become one line and an exit code, and that gets the host as its first argument."""

    def decorate(function: Any) -> click.Command:
        made: click.Command = click.command(name, **settings)(pass_host(guarded(function)))  # type: ignore[no-untyped-call, unused-ignore]
        params = getattr(function, "__click_params__", None)
        if params:
            made.params = list(reversed(params))
        return made

    return decorate
