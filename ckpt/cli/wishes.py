"""Options that say what is wished of a migration, of its forecast, and of a dump that copies in the same way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ckpt.ops.convergence import Limits
from runtime.cgroups.parse import parse_size
from runtime.errors import BadInput

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def mode_option(help: str) -> Option:
    modes = click.Choice(["auto", "warm", "cold", "lazy"])
    return click.option("--mode", type=modes, default="auto", show_default=True, help=help)


def copying_options(*, downtime: float, stays: str) -> Option:
    """Options whose values the command gets as `limits`. DOWNTIME: the default of --max-downtime, in seconds.

    STAYS: what the command rather does not do than freeze for longer.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def limited(
            *args: Any,
            max_downtime: float,
            max_rounds: int,
            abort_if_not_converging: bool,
            **rest: Any,
        ) -> Any:
            if abort_if_not_converging and rest["mode"] not in ("auto", "warm"):
                raise BadInput(
                    doing="reading",
                    target="--abort-if-not-converging",
                    why=f"nothing is copied in rounds with --mode {rest['mode']}",
                    hint="--mode warm",
                )
            limits = Limits(max_downtime / 1e3, max_rounds, abort_if_not_converging)
            return function(*args, limits=limits, **rest)

        options = (
            click.option(
                "--max-downtime",
                type=click.FloatRange(1),
                default=downtime * 1e3,
                show_default=True,
                metavar="MS",
                help="Copy on (warm) until the rest takes no longer than this.",
            ),
            click.option(
                "--max-rounds",
                type=click.IntRange(1),
                default=Limits().max_rounds,
                show_default=True,
                metavar="N",
                help="But no more rounds than these (warm).",
            ),
            click.option(
                "--abort-if-not-converging",
                is_flag=True,
                help=f"Rather not {stays} than freeze for longer than --max-downtime.",
            ),
        )
        for option in reversed(options):
            limited = option(limited)
        return limited

    return decorate


pre_copy_option = click.option(
    "--pre-copy",
    is_flag=True,
    help="With --mode lazy: copy the memory once before it moves; what it writes meanwhile follows.",
)


def require_lazy(pre_copy: bool, mode: str) -> None:
    """Raises BadInput for --pre-copy with another mode."""
    if pre_copy and mode != "lazy":
        raise BadInput(
            doing="reading",
            target="--pre-copy",
            why=f"it says how a lazy move begins, not one with --mode {mode}",
            hint="--mode lazy",
        )


def bandwidth_option(help: str) -> Option:
    return click.option("--bandwidth", metavar="RATE", help=help)


def rate(bandwidth: str | None) -> float | None:
    """Bytes per second. Raises BadInput."""
    return float(parse_size(bandwidth, what="--bandwidth")) if bandwidth else None
