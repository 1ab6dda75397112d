"""dump, restore, checkpoints."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ckpt.cli import show
from ckpt.cli.describe import clean, describe_checkpoint
from ckpt.cli.edge import CORRUPT
from ckpt.cli.types import CHECKPOINT, CONTAINER, command, json_option
from ckpt.cli.wishes import copying_options
from ckpt.ops import dump as dumping
from ckpt.ops import readiness, retention
from ckpt.ops import restore as restoring
from ckpt.ops.convergence import Limits
from ckpt.ops.host import Host
from ckpt.ops.snapshot import LIMITS, Wanted
from images.inspect import inspect_images
from images.manifest import Manifest
from runtime.errors import BadInput


@command("dump")
@click.option("--as", "checkpoint", default="", metavar="NAME", help="The checkpoint's name.")
@click.option("--leave-running", is_flag=True, help="The container runs on afterwards.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "warm", "cold"]),
    default="auto",
    show_default=True,
    help="With --leave-running: warm: memory is copied while the container runs; cold: it stands still meanwhile; "
    "auto: warm if this host can.",
)
@copying_options(downtime=LIMITS.max_downtime, stays="dump")
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    help="Write a stream to a file or to stdout, not to the store.",
)
@click.option("--dry-run", is_flag=True, help="Only say what speaks against it, and its size.")
@json_option
@click.argument("name", type=CONTAINER)
def dump(
    host: Host,
    name: str,
    checkpoint: str,
    leave_running: bool,
    mode: str,
    limits: Limits,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Checkpoint a container: processes, memory, open files, sockets, and the files it wrote.

    \b
    ckpt dump web                             # into the store; the container stops
    ckpt dump web --leave-running --as daily
    ckpt dump web --leave-running --max-downtime 200 --abort-if-not-converging
    ckpt dump web -o - | ssh other ckpt restore -
    """
    if dry_run:
        _foretell(readiness.require(host, host.find(name), store=output is None), as_json)
        return
    wanted = Wanted(checkpoint, leave_running, mode, limits)
    if output is None:
        taken = dumping.to_store(host, name, wanted)
    elif output == "-":
        if os.isatty(1):
            raise BadInput(
                doing="writing",
                target="a checkpoint to the terminal",
                why="it is not for eyes",
                hint="redirect it, or name a file with -o",
            )
        taken = dumping.to_stream(host, name, 1, wanted)
    else:
        taken = dumping.to_file(host, name, Path(output), wanted)
    how = taken.how
    if as_json:
        found = {**_brief(taken.manifest), **how.to_dict()}
        show.emit_json(found, err=output == "-")
        return
    if how.mode_why:
        click.echo(f"ckpt: {name}: copied while it stood still: {how.mode_why}", err=True)
    for note in how.notes:
        click.echo(f"ckpt: {name}: {note}", err=True)
    if output != "-":
        click.echo(taken.manifest.name)


def _foretell(found: readiness.Forecast, as_json: bool) -> None:
    if as_json:
        show.emit_json(asdict(found))
        return
    click.echo(
        f"{found.container} can be dumped: {found.processes} processes, about {show.size(found.images)} of memory "
        f"and {show.size(found.files)} of files; {show.size(found.free)} are free in the store"
    )


@command("restore")
@click.option("--as", "name", default="", metavar="NAME", help="Another name for the container.")
@click.option("--no-verify", is_flag=True, help="Don't compare digests first.")
@click.argument("source", type=CHECKPOINT, metavar="CHECKPOINT|FILE|-")
def restore(host: Host, source: str, name: str, no_verify: bool) -> None:
    """Bring a container back from a checkpoint, and let it run on.

    \b
    ckpt restore web-20260101-120000
    ckpt restore backup.ckpt --as copy
    """
    if source == "-":
        done = restoring.from_stream(host, 0, name=name)
    elif "/" in source or (source not in host.store.names() and Path(source).is_file()):
        done = restoring.from_file(host, Path(source), name=name)
    else:
        done = restoring.from_store(host, source, name=name, verify=not no_verify)
    for note in done.notes:
        click.echo(f"ckpt: {done.container.record.name}: {note}", err=True)
    click.echo(done.container.record.name)


@click.group("checkpoints", context_settings={"help_option_names": ["-h", "--help"]})
def checkpoints() -> None:
    """The checkpoints of this host."""


@command("ls")
@json_option
def ls(host: Host, as_json: bool) -> None:
    """List them, oldest first."""
    found = [
        {
            "name": entry.name,
            "container": entry.manifest.container_name if entry.manifest else None,
            "created_ns": entry.manifest.created if entry.manifest else 0,
            "size": entry.size,
            "problem": str(entry.fault) if entry.fault else None,
        }
        for entry in host.store.list()
    ]
    if as_json:
        show.emit_json(found)
        return
    show.table(
        ("NAME", "CONTAINER", "CREATED", "SIZE"),
        (
            (
                one["name"],
                one["container"] or "(damaged)",
                show.ago(int(one["created_ns"] or 0)) if one["container"] else "?",
                show.size(int(one["size"] or 0)),
            )
            for one in found
        ),
    )
    for one in found:
        if one["problem"]:
            click.echo(f"{one['name']}: {one['problem']}", err=True)


@command("inspect")
@json_option
@click.argument("name", type=CHECKPOINT)
def inspect(host: Host, name: str, as_json: bool) -> None:
    """What is in a checkpoint: processes, open files, sockets, memory by kind, sizes and times."""
    with host.store.open(name) as stored:
        manifest = stored.manifest
        found = inspect_images(stored.criu_dir).to_dict()
    value = {"manifest": _brief(manifest), **found}
    if as_json:
        show.emit_json(value)
    else:
        describe_checkpoint(manifest, found)


@command("verify")
@json_option
@click.argument("names", nargs=-1, type=CHECKPOINT)
def verify(host: Host, names: tuple[str, ...], as_json: bool) -> None:
    """Read every byte and compare it with the digests. All checkpoints, if none is named."""
    found = {
        name: [
            {"part": clean(problem.part), "what": clean(problem.what)}
            for problem in host.store.verify(name)
        ]
        for name in names or host.store.names()
    }
    if as_json:
        show.emit_json(found)
    else:
        for name, problems in found.items():
            click.echo(f"{name}: {'damaged' if problems else 'good'}")
            for problem in problems:
                click.echo(f"  {problem['part']}: {problem['what']}")
    if any(found.values()):
        sys.exit(CORRUPT)


@command("rm")
@click.argument("names", nargs=-1, required=True, type=CHECKPOINT)
def rm(host: Host, names: tuple[str, ...]) -> None:
    """Delete checkpoints."""
    for name in names:
        host.store.remove(name)
        click.echo(name)


@command("prune")
@click.option(
    "--keep", type=click.IntRange(0), metavar="N", help="Keep the newest N of each container."
)
@click.option("--older-than", metavar="AGE", help="Keep those younger than this: 12h, 7d, 4w.")
@click.option("--container", metavar="NAME", help="Only checkpoints of this container.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say which would go.")
@json_option
def prune(
    host: Host,
    keep: int | None,
    older_than: str | None,
    container: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete old checkpoints. What is in use, and what cannot be read, stays.

    \b
    ckpt checkpoints prune --keep 3
    ckpt checkpoints prune --older-than 7d --keep 1 --container web --dry-run
    """
    age = None if older_than is None else retention.parse_age(older_than)
    policy = retention.Policy(keep, age, container)
    found = retention.prune(host, policy, time.time_ns(), dry_run=dry_run)
    if as_json:
        show.emit_json([asdict(one) for one in found])
        return
    for one in found:
        click.echo(f"{one.name}: kept, {one.kept}" if one.kept else one.name)


@command("export")
@click.argument("name", type=CHECKPOINT)
@click.argument("file", metavar="FILE|-")
def export(host: Host, name: str, file: str) -> None:
    """Write a checkpoint as one stream, with the layers that it needs."""
    with host.store.open(name) as stored:
        if file == "-":
            restoring.export(host, stored, 1)
        else:
            with dumping.whole_file(Path(file)) as fd:
                restoring.export(host, stored, fd)


@command("import")
@click.option("--as", "name", default="", metavar="NAME", help="Another name.")
@click.argument("file", metavar="FILE|-")
def import_(host: Host, file: str, name: str) -> None:
    """Take a stream into the store."""
    host.ready()
    if file == "-":
        click.echo(restoring.import_stream(host, 0, name=name).name)
        return
    with dumping.opened(Path(file)) as fd:
        click.echo(restoring.import_stream(host, fd, name=name).name)


for _command in (ls, inspect, verify, rm, prune, export, import_):
    checkpoints.add_command(_command)


def _brief(manifest: Manifest) -> dict[str, Any]:
    """A manifest without the container's inner record."""
    found = manifest.to_dict()
    found.pop("container", None)
    found["size"] = manifest.size
    return found


COMMANDS = [dump, restore, checkpoints]
