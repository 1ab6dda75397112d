"""doctor."""

from __future__ import annotations

import sys
import textwrap

import click

from ckpt.cli import show
from ckpt.cli.types import HOST, command, json_option
from ckpt.ops import doctor as doctors
from ckpt.ops.doctor import Row
from ckpt.ops.host import Host

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "bad": ("BAD", "red")}


@command("doctor")
@click.option("--fix", is_flag=True, help="Do what is harmless, and say what was done.")
@json_option
@click.argument("target", metavar="[HOST]", type=HOST, required=False)
def doctor(host: Host, target: str | None, fix: bool, as_json: bool) -> None:
    """What this host, or another one, can do.

    Every weakness comes with its consequence and its fix. Exit code 0: containers can be run, dumped
    and restored there; 1: they can't.

    \b
    ckpt doctor
    ckpt doctor --fix
    ckpt doctor root@other --json
    """
    if target is not None:
        rows, fixed = doctors.examine_host(host, target, fix=fix)
    else:
        rows, fixed = doctors.examine(host), []
        if fix:
            fixed = [cured.to_dict() for cured in doctors.cure(host, rows)]
            rows = doctors.examine(host) if fixed else rows
    well = doctors.healthy(rows)
    if as_json:
        show.emit_json(
            {"host": target, "ok": well, "rows": [row.to_dict() for row in rows], "fixed": fixed}
        )
    else:
        for cured in fixed:
            outcome = "done" if cured["worked"] else f"failed ({cured['repair']})"
            click.echo(f"{outcome}: {cured['did']}")
        verdict_table(rows)
        click.echo(_verdict(rows, well))
    sys.exit(0 if well else 1)


def verdict_table(rows: list[Row]) -> None:
    """A line for each row; what is wrong goes below it, with what to do."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        text, colour = _MARKS[row.level]
        # The mark stands in front: it is what one looks for, and values may be long.
        click.echo(f"{click.style(text.ljust(4), fg=colour)}  {row.name.ljust(width)}  {row.value}")
        if row.level != "ok":
            _below(row.consequence, width)
            _below(f"fix: {row.fix}" if row.fix else "", width)


def _below(text: str, width: int) -> None:
    indent = " " * (width + 8)
    if text:
        click.echo(textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent))


def _verdict(rows: list[Row], well: bool) -> str:
    bad = sum(1 for row in rows if row.level == "bad")
    warnings = sum(1 for row in rows if row.level == "warn")
    if not well:
        return (
            f"\ncontainers can't be run, dumped and restored here: {bad} bad, {warnings} warnings"
        )
    if warnings:
        return f"\ncontainers can be run, dumped and restored here, with {warnings} warnings"
    return "\ncontainers can be run, dumped and restored here"


COMMANDS = [doctor]
