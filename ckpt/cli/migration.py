"""migrate, recover."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from ckpt.cli import show
from ckpt.cli.edge import SIGNALLED, exit_code
from ckpt.cli.edge import report as report_fault
from ckpt.cli.forecast import show_plan
from ckpt.cli.page.file import PageFile
from ckpt.cli.page.migration import render
from ckpt.cli.progress import MigrationProgress
from ckpt.cli.threads import SWITCH
from ckpt.cli.types import CONTAINER, HOST, command, json_option
from ckpt.cli.wishes import (
    bandwidth_option,
    copying_options,
    mode_option,
    pre_copy_option,
    rate,
    require_lazy,
)
from ckpt.ops import interrupt
from ckpt.ops import migrate as migrating
from ckpt.ops import recover as recovering
from ckpt.ops.convergence import Limits
from ckpt.ops.forecast import LAZY_RISK
from ckpt.ops.host import Host
from ckpt.ops.report import Report
from ckpt.ops.wishes import Wishes
from runtime.errors import RuntimeFault, SystemFault, TimedOut


@command("migrate")
@mode_option(
    "warm: memory is copied while the container runs; cold: it stands still meanwhile; "
    "lazy: it runs there at once, its memory follows (see the risk below); "
    "auto: warm if both hosts can."
)
@copying_options(downtime=Limits().max_downtime, stays="move")
@bandwidth_option("Bytes per second for memory (warm): 100m.")
@pre_copy_option
@click.option(
    "--dry-run", is_flag=True, help="Only preflight: what would refuse it, and nothing is touched."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1), metavar="S", help="Give up after so many seconds."
)
@click.option(
    "--lane",
    "lanes",
    multiple=True,
    type=click.Choice(["tls", "openssh", "paramiko"]),
    help="How the bytes travel; the fastest that works otherwise.",
)
@click.option(
    "--report",
    "page",
    metavar="FILE.html",
    type=click.Path(dir_okay=False),
    help="Write a page about it, also if it fails: phases, rounds, the frozen window.",
)
@json_option
@click.argument("name", type=CONTAINER)
@click.argument("target", metavar="HOST", type=HOST)
def migrate(
    host: Host,
    name: str,
    target: str,
    mode: str,
    limits: Limits,
    bandwidth: str | None,
    pre_copy: bool,
    dry_run: bool,
    timeout: float | None,
    lanes: tuple[str, ...],
    page: str | None,
    as_json: bool,
) -> None:
    """Move a running container to another host: a name (ckpt host add) or [USER@]HOST[:PORT].

    Whatever fails, exactly one copy runs. The other host needs ckpt, and its host key must be known.

    With --mode lazy the container needs both hosts until its last page has come: if this one goes down meanwhile, the
    container is lost. Its connection may break: then it waits.

    \b
    ckpt migrate web root@other
    ckpt migrate web root@other --dry-run
    ckpt migrate web root@other --mode lazy
    ckpt migrate web root@other --max-downtime 20 --abort-if-not-converging
    ckpt migrate web root@other --report web.html
    """
    sys.setswitchinterval(SWITCH)
    require_lazy(pre_copy, mode)
    if mode == "lazy" and not as_json:
        click.echo(f"lazy: {LAZY_RISK}", err=True)
    with (
        MigrationProgress(quiet=as_json) as progress,
        Interruptions(name, timeout) as ways_out,
        Told(page, as_json=as_json, ways_out=ways_out),
    ):
        try:
            wishes = Wishes(
                mode=mode,
                limits=limits,
                bandwidth=rate(bandwidth),
                pre_copy=pre_copy,
                lanes=lanes,
                dry_run=dry_run,
            )
            report = migrating.migrate(
                host,
                name,
                target,
                wishes=wishes,
                progress=progress.show,
                on_begin=ways_out.watch,
            )
        except migrating.Refused as refused:
            if not dry_run or as_json:
                raise
            progress.end()
            show_plan(name, target, refused.report)
            sys.exit(exit_code(refused))
        except RuntimeFault as fault:
            ways_out.leave_as_signalled(fault)
            raise
    if as_json:
        pass  # Told has said it
    elif dry_run:
        show_plan(name, target, report)
    else:
        _show_summary(name, target, report)


class Told:
    """At the end, however it ended: the report as JSON, and as a page. Use as a context manager."""

    def __init__(self, page: str | None, *, as_json: bool, ways_out: Interruptions) -> None:
        self._file = PageFile(page) if page is not None else None
        self._as_json = as_json
        self._ways_out = ways_out

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        migration = self._ways_out.migration
        found = migration.report.to_dict() if migration is not None else None
        if self._file is not None:
            with self._file:
                if found is not None:
                    self._write(found)
        if self._as_json and found is not None:
            show.emit_json(found)

    def _write(self, found: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(render(found))
        except RuntimeFault as fault:
            # The migration is what it is: its own outcome is what the exit code tells.
            click.echo(f"ckpt: {fault}", err=True)


class Interruptions:
    """Ctrl-C, SIGTERM, SIGHUP and the deadline, as long as a migration can still be given up."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self._name = name
        self._timeout = timeout
        self.migration: migrating.Migration | None = None
        self._signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        while self._before:
            signal.signal(*self._before.popitem())

    def watch(self, migration: migrating.Migration) -> None:
        """From now on a signal stops MIGRATION instead of this process."""
        self.migration = migration
        for number in (*interrupt.SIGNALS, signal.SIGALRM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrived)
        if self._timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, self._timeout)

    def _arrived(self, number: int, _: object) -> None:
        assert self.migration is not None
        if number == signal.SIGALRM:
            why = f"it was not done in {self._timeout:g} s"
            fault: RuntimeFault = TimedOut(
                doing="migrating", target=self._name, why=why, retry=True
            )
        else:
            self._signal = self._signal or number
            why = "it was interrupted, and runs here"
            fault = SystemFault(doing="migrating", target=self._name, why=why, retry=True)
        self.migration.stop(fault)

    def leave_as_signalled(self, fault: RuntimeFault) -> None:
        """If FAULT is our own answer to a signal: say so, and end with that signal's exit code."""
        if self._signal and isinstance(fault, SystemFault) and "interrupted" in fault.why:
            report_fault(fault, as_json=False)
            sys.exit(SIGNALLED + self._signal)


def _show_summary(name: str, target: str, report: Report) -> None:
    click.echo(
        f"{name} runs at {target}: stood still for {show.millis(report.downtime_ns)}, "
        f"took {report.total_ns / 1e9:.2f} s, {show.size(report.bytes_total)} over the {report.lane} lane"
    )
    if report.mode == "lazy":
        click.echo(
            f"  {show.size(report.bytes_owed)} of memory followed: all there "
            f"{report.whole_ns / 1e9:.2f} s after it ran, {report.faults} pages were waited for"
        )
    click.echo(
        f"  images {show.size(report.bytes_images)}, files {show.size(report.bytes_files)}, "
        f"layers {show.size(report.bytes_layers)}"
    )


@command("recover")
@click.option(
    "--assume",
    type=click.Choice(["committed", "aborted"]),
    help="Decide for a migration whose other host is gone for good.",
)
@json_option
@click.argument("migration", required=False)
def recover(host: Host, migration: str | None, assume: str | None, as_json: bool) -> None:
    """Finish what was interrupted: migrations, half-made containers, leftovers. Safe at any time.

    Without MIGRATION everything that this host knows of is looked at; meant for boot and cron.
    """
    found = recovering.recover(host, only=migration, assume=assume)
    if as_json:
        show.emit_json(found)
        return
    for one in found:
        click.echo(f"{one['what']}: {one['did']}")
    if not found:
        click.echo("nothing to recover")


COMMANDS = [migrate, recover]
