"""host add, ls, check, setup, rm: other machines by name."""

from __future__ import annotations

import sys

import click

from ckpt.cli import show
from ckpt.cli.doctor import verdict_table
from ckpt.cli.types import HOST, command, json_option
from ckpt.ops.doctor import Row, healthy
from ckpt.ops.elsewhere import check as checking
from ckpt.ops.elsewhere import setup as setting_up
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry, accepts
from transport.ssh_reach import OfferedKey

prefix_option = click.option(
    "--prefix",
    default=setting_up.DEFAULT_PREFIX,
    show_default=True,
    metavar="DIR",
    help="Where ckpt is installed there.",
)


@click.group("host", context_settings={"help_option_names": ["-h", "--help"]})
def host_group() -> None:
    """Other machines that containers can move to, by name.

    \b
    ckpt host add b root@10.0.0.2
    ckpt host setup b
    ckpt host check b
    ckpt migrate web b
    """


@command("add")
@click.option(
    "--accept",
    metavar="FINGERPRINT",
    help="Accept its host key if this is its fingerprint: SHA256:…, from ssh-keygen -l over there.",
)
@json_option
@click.argument("name")
@click.argument("target", metavar="[USER@]HOST[:PORT]")
def add(host: Host, name: str, target: str, accept: str | None, as_json: bool) -> None:
    """Give a host a name. Its key must be known, or be accepted by its fingerprint.

    \b
    ckpt host add b root@10.0.0.2
    ckpt host add b root@10.0.0.2:2222 --accept SHA256:Qn0T…
    """
    hosts = Registry(host)
    named = hosts.add(name, target, accepts(accept) if accept else _ask)
    if as_json:
        show.emit_json({"name": name, "target": named.target, "keys": hosts.fingerprints(named)})
    else:
        click.echo(f"{name} is {named.target}")


def _ask(key: OfferedKey) -> bool:
    """A person at a terminal decides; without one nobody has."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(f"{key.name} shows the key {key.kind} {key.fingerprint}", err=True)
    click.echo("Is that what ssh-keygen -l says over there?", err=True)
    return click.confirm("Accept it", err=True)


@command("ls")
@json_option
def ls(host: Host, as_json: bool) -> None:
    """The hosts that have a name here."""
    hosts = Registry(host)
    found = [(named, hosts.fingerprints(named)) for named in hosts.all()]
    if as_json:
        show.emit_json(
            [{"name": n.name, "target": n.target, "ckpt": n.command, "keys": k} for n, k in found]
        )
        return
    show.table(
        ("NAME", "TARGET", "KEY"),
        [(n.name, n.target, ", ".join(k) or "in your known_hosts") for n, k in found],
    )


@command("setup")
@prefix_option
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@click.argument("name", type=HOST)
def setup(host: Host, name: str, prefix: str, dry_run: bool, as_json: bool) -> None:
    """Install this ckpt and this CRIU there, over SSH; does only what is missing.

    It needs root there, Python 3.11 and sshd. Missing Debian packages come from its own mirror, all
    else is sent from here.

    \b
    ckpt host setup b
    ckpt host setup b --dry-run
    """
    done = setting_up.set_up(
        host, name, prefix=prefix, dry_run=dry_run, say=lambda line: click.echo(line, err=as_json)
    )
    if dry_run:
        if as_json:
            show.emit_json(done)
        return
    rows = checking.check(host, name, prefix=prefix)
    well = healthy(rows)
    if as_json:
        show.emit_json({**done, "ok": well, "rows": [row.to_dict() for row in rows]})
    else:
        _show(name, rows)
    sys.exit(0 if well else 1)


@command("check")
@json_option
@click.argument("target", metavar="NAME", type=HOST)
def check(host: Host, target: str, as_json: bool) -> None:
    """Whether containers can move there: the machine, its ckpt and CRIU, what its doctor finds.

    Exit code 0: they can, as far as can be said without one; 1: they can't.

    \b
    ckpt host check b
    ckpt host check root@10.0.0.2 --json
    """
    prefix = checking.prefix_of(host, target, setting_up.DEFAULT_PREFIX)
    rows = checking.check(host, target, prefix=prefix)
    well = healthy(rows)
    if as_json:
        show.emit_json({"host": target, "ok": well, "rows": [row.to_dict() for row in rows]})
    else:
        _show(target, rows)
    sys.exit(0 if well else 1)


def _show(name: str, rows: list[Row]) -> None:
    click.echo()
    verdict_table(rows)
    click.echo(f"\ncontainers {'can' if healthy(rows) else 'CAN NOT'} move to {name}")


@command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=HOST)
def rm(host: Host, names: tuple[str, ...]) -> None:
    """Forget hosts, and the keys that were accepted for them. Nothing changes over there.

    \b
    ckpt host rm b
    """
    hosts = Registry(host)
    for name in names:
        hosts.remove(name)
        click.echo(name)


for _command in (add, ls, setup, check, rm):
    host_group.add_command(_command)

COMMANDS = [host_group]
