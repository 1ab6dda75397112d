"""forecast; and how a forecast is shown, here and by `migrate --dry-run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from ckpt.cli import show
from ckpt.cli.edge import exit_code
from ckpt.cli.progress import MigrationProgress
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.cli.wishes import (
    bandwidth_option,
    copying_options,
    mode_option,
    pre_copy_option,
    rate,
    require_lazy,
)
from ckpt.ops import migrate as migrating
from ckpt.ops.convergence import Limits
from ckpt.ops.forecast import Forecast, Prediction
from ckpt.ops.foresee import foresee_here
from ckpt.ops.host import Host
from ckpt.ops.observe import SECONDS
from ckpt.ops.report import Report
from ckpt.ops.wishes import Wishes

NOT_POSSIBLE = 13
"""As for what is refused (ckpt/cli/edge.py)."""


@command("forecast")
@mode_option("The mode that is asked for; all are shown.")
@bandwidth_option(
    "Bytes per second: without HOST what the network is assumed to carry (117m: 1 Gbit/s); "
    "with HOST no more than that for memory."
)
@copying_options(downtime=Limits().max_downtime, stays="move")
@pre_copy_option
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 600),
    default=SECONDS,
    show_default=True,
    metavar="S",
    help="Watch the container for so long.",
)
@json_option
@click.argument("name", type=CONTAINER)
@click.argument("target", metavar="[[USER@]HOST[:PORT]]", required=False)
def forecast(
    host: Host,
    name: str,
    target: str | None,
    mode: str,
    bandwidth: str | None,
    limits: Limits,
    pre_copy: bool,
    seconds: float,
    as_json: bool,
) -> None:
    """Say what moving a running container would cost: rounds, bytes, downtime, time.

    The container is watched for a few seconds and runs on as it was. With HOST the way there is tried, and everything
    that speaks against the move is named; nothing stays there.

    \b
    ckpt forecast web                        over a network of 1 Gbit/s
    ckpt forecast web --bandwidth 1100m      of 10 Gbit/s
    ckpt forecast web root@other             over the one that there is
    ckpt forecast web root@other --max-downtime 10 --json
    ckpt forecast web root@other --mode lazy --pre-copy
    """
    require_lazy(pre_copy, mode)
    wishes = Wishes(
        mode=mode,
        pre_copy=pre_copy,
        limits=limits,
        bandwidth=rate(bandwidth),
        dry_run=True,
        seconds=seconds,
    )
    with MigrationProgress(quiet=as_json) as progress:
        if target is None:
            progress.show("observe", 0, 0)
            found = foresee_here(
                host, name, wishes, check=lambda share: progress.show("observe", 0, 0)
            )
        else:
            try:
                report = migrating.migrate(
                    host, name, target, wishes=wishes, progress=progress.show
                )
            except migrating.Refused as refused:
                if as_json:
                    raise
                progress.end()
                show_plan(name, target, refused.report)
                sys.exit(exit_code(refused))
            assert report.forecast is not None
            found = report.forecast
    if as_json:
        show.emit_json({"name": name, "target": target or "", **found.to_dict()})
    else:
        show_forecast(name, found)
    if found.chosen is None:
        sys.exit(NOT_POSSIBLE)


def show_plan(name: str, target: str, report: Report) -> None:
    """What preflight looked at, what speaks against it, and what it would cost."""
    if report.checks:
        show.table(
            ("CHECK", "HERE", "THERE"),
            [(row["what"], row["here"], row["there"]) for row in report.checks],
        )
        click.echo()
    for finding in report.findings:
        hint = f" ({finding['hint']})" if finding["hint"] else ""
        click.echo(f"REFUSED  {finding['what']}: {finding['why']}{hint}")
    if report.findings:
        return
    click.echo(f"{name} can move to {target}: nothing speaks against it")
    if report.forecast is not None:
        click.echo()
        show_forecast(name, report.forecast)


def show_forecast(name: str, found: Forecast) -> None:
    """For people."""
    seen = found.at.observed
    size = show.size
    processes = "1 process" if seen.content.tasks == 1 else f"{seen.content.tasks} processes"
    click.echo(
        f"{name}: {size(seen.content.carried)} in {processes}; writes {size(seen.writing(0.1))} "
        f"in 0.1 s, {size(seen.writing(1.0))} in 1 s (watched for {seen.seconds:.1f} s by {seen.tracker})"
    )
    show.table(
        ("MODE", "ROUNDS", "MEMORY", "FROZEN", "ON THE LANE", "STANDS STILL", "FOLLOWS", "TAKES"),
        [_row(one) for one in found.predictions],
    )
    for one in found.predictions:
        for line in _details(one, chosen=one is found.chosen):
            click.echo(line)
    click.echo(f"from: {found.at.way.basis}; constants of ckpt/ops/forecast.py for CRIU")


def _row(one: Prediction) -> tuple[str, ...]:
    if not one.possible:
        return (one.name, "-", "-", "-", "-", "not possible", "-", "-")
    return (
        one.name,
        str(len(one.rounds)) if one.rounds else "-",
        show.size(one.size),
        show.size(one.frozen),
        show.size(one.sent),
        f"{one.downtime_s * 1e3:.0f} ms",
        f"{one.follows_s:.1f} s" if one.follows else "-",
        f"{one.total_s:.1f} s",
    )


def _details(one: Prediction, *, chosen: bool) -> Iterator[str]:
    yield ""
    if not one.possible:
        yield f"{one.name}: not possible: {one.why}"
        return
    yield f"{one.name}{' (would be used)' if chosen else ''}"
    for number, each in enumerate(one.rounds, 1):
        what = f"round {number}" if number < len(one.rounds) or one.pre_copy else "the rest"
        yield f"  {what:<9} {show.size(each.size):>10}  {each.seconds * 1e3:7.0f} ms"
    if one.why:
        yield f"  then it is frozen: {one.why}"
    yield "  while it stands still:"
    for part in one.window:
        amount = show.size(part.size) if part.size else ""
        yield f"    {part.what:<40} {amount:>10}  {part.seconds * 1e3:7.1f} ms"
    if one.follows:
        size, seconds = show.size(one.follows), one.follows_s
        yield f"  then {size} follow in {seconds:.1f} s, while it runs there and needs both hosts"
    for note in one.notes:
        yield f"  {note}"


COMMANDS = [forecast]
