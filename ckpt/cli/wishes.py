"""Options that say what is wished of a migration: migrate's, and those of its forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from runtime.cgroups.parse import parse_size

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def mode_option(help: str) -> Option:
    modes = click.Choice(["auto", "warm", "cold", "lazy"])
    return click.option("--mode", type=modes, default="auto", show_default=True, help=help)


def max_downtime_option(help: str) -> Option:
    return click.option(
        "--max-downtime",
        type=click.FloatRange(1),
        default=50.0,
        show_default=True,
        metavar="MS",
        help=help,
    )


max_rounds_option = click.option(
    "--max-rounds", type=click.IntRange(1), default=20, show_default=True, metavar="N"
)


def bandwidth_option(help: str) -> Option:
    return click.option("--bandwidth", metavar="RATE", help=help)


def rate(bandwidth: str | None) -> float | None:
    """Bytes per second. Raises BadInput."""
    return float(parse_size(bandwidth, what="--bandwidth")) if bandwidth else None
