"""update, stats."""

from __future__ import annotations

from typing import Any

import click

from ckpt.cli import show
from ckpt.cli.flags import LIMITS, limits_of, options
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.ops import limits
from ckpt.ops.host import Host
from runtime.container.record import LIVE


@command("update")
@options(LIMITS)
@click.argument("name", type=CONTAINER)
def update(host: Host, name: str, **flags: Any) -> None:
    """Change the limits of a container, also while it runs.

    \b
    ckpt update --memory 2g --cpus 3 web
    ckpt update --disk 10g web
    """
    limits.update(host, name, limits_of(flags))


@command("stats")
@json_option
@click.argument("names", nargs=-1, type=CONTAINER)
def stats(host: Host, names: tuple[str, ...], as_json: bool) -> None:
    """What running containers use."""
    chosen = [host.find(name) for name in names] or [
        container for container in host.containers() if container.status().state in LIVE
    ]
    found = [limits.stats(host, container) for container in chosen]
    if as_json:
        show.emit_json(found)
        return
    show.table(
        ("NAME", "MEMORY", "LIMIT", "CPU TIME", "PIDS", "READ", "WRITTEN", "OOM KILLS"),
        (_usage(one) for one in found),
    )


def _usage(one: dict[str, Any]) -> tuple[str, ...]:
    memory, cpu, pids = one["memory"], one["cpu"], one["pids"]

    def size(value: int | None) -> str:
        return "-" if value is None else show.size(value)

    return (
        one["name"],
        size(memory["usage"]),
        size(memory["limit"]),
        "-" if cpu["usage_us"] is None else f"{cpu['usage_us'] / 1e6:.2f} s",
        "-" if pids["current"] is None else str(pids["current"]),
        size(sum(entry["read_bytes"] for entry in one["io"])),
        size(sum(entry["write_bytes"] for entry in one["io"])),
        "-" if memory["oom_kill"] is None else str(memory["oom_kill"]),
    )


COMMANDS = [update, stats]
