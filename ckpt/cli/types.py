"""What several commands share: decorators for common options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ckpt.cli.edge import guarded
from ckpt.ops.host import Host
from runtime.errors import BadInput

pass_host: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Host)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value, for machines.")


class _Completed(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A text, completed from the names that there are."""

    def names(self, host: Host) -> Iterable[str]:
        raise NotImplementedError

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            names = list(self.names(Host.here(ctx.find_root().params.get("root"))))
        except Exception:  # a completion must never fail loudly
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ContainerName(_Completed):
    """A name or the beginning of an id."""

    name = "name"

    def names(self, host: Host) -> Iterable[str]:
        return (container.record.name for container in host.containers())


class CheckpointName(_Completed):
    """A checkpoint of the store."""

    name = "checkpoint"

    def names(self, host: Host) -> Iterable[str]:
        return host.store.names()


class HostName(_Completed):
    """A host's name (ckpt host add), or [USER@]HOST[:PORT]."""

    name = "host"

    def names(self, host: Host) -> Iterable[str]:
        from ckpt.ops.hosts import Registry  # SSH's libraries: not for every command

        return (one.name for one in Registry(host).all())


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
