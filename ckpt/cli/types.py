"""What several commands share: decorators for common options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ckpt.cli.edge import guarded
from ckpt.ops.host import Host
from runtime.errors import RuntimeFault

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


CONTAINER = ContainerName()
CHECKPOINT = CheckpointName()


def command(
    name: str, **settings: Any
) -> Callable[[Callable[..., Any] | click.Command], click.Command]:
    """A click command whose faults become one line and an exit code, and that gets the host as its first argument."""

    def decorate(function: Any) -> click.Command:
        made: click.Command = click.command(name, **settings)(pass_host(guarded(function)))
        params = getattr(function, "__click_params__", None)
        if params:
            made.params = list(reversed(params))
        return made

    return decorate
