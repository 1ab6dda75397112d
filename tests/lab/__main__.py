"""python -m tests.lab up|status|shell|down: the lab by hand."""

from __future__ import annotations

import argparse
import os
import sys

from tests.lab import processes, topology
from tests.lab.lab import Lab, LabError, labs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="make a lab that stays")
    up.add_argument("--tmpfs", action="store_true", help="ckpt roots in memory")
    verbs.add_parser("status", help="list labs, hosts and their processes")
    for name, text in (("shell", "a shell, or COMMAND, on HOST"), ("down", "remove labs")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--lab", help="its name, if there are several")
        if name == "shell":
            verb.add_argument("host")
            verb.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        return int(globals()[f"_{arguments.verb}"](arguments) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _up(arguments: argparse.Namespace) -> None:
    lab = Lab(storage="tmpfs" if arguments.tmpfs else "disk", persistent=True)
    lab.up()
    _show(lab)


def _status(_: argparse.Namespace) -> None:
    found = labs()
    for lab in found:
        _show(lab)
    if not found:
        print("no lab; python -m tests.lab up")


def _shell(arguments: argparse.Namespace) -> None:
    lab = _chosen(arguments.lab)
    host = lab.hosts.get(arguments.host)
    if host is None:
        raise LabError(f"no host {arguments.host}; there are {', '.join(lab.hosts)}")
    command = arguments.command or [os.environ.get("SHELL", "/bin/sh")]
    os.environ.update(host.environment())
    argv = host.argv(command)
    os.execvp(argv[0], argv)


def _down(arguments: argparse.Namespace) -> None:
    chosen = [_chosen(arguments.lab)] if arguments.lab else labs()
    for lab in chosen:
        lab.close()
        print(f"{lab.run_name} is gone")


def _chosen(name: str | None) -> Lab:
    found = [lab for lab in labs() if name in (None, lab.run_name)]
    if len(found) != 1:
        names = ", ".join(lab.run_name for lab in found)
        raise LabError(f"several labs, say --lab: {names}" if found else "no such lab")
    return found[0]


def _show(lab: Lab) -> None:
    running = processes.of_lab(lab.directory, topology.inodes(lab.run_name))
    print(f"{lab.run_name}: {lab.directory}, {len(running)} processes")
    for host in lab.hosts.values():
        print(f"  {host.name}  {host.address}  {host.address6}  {host.root}")
    print(f"  ssh -F {lab.login.config} a    (from inside: python -m tests.lab shell b)")


if __name__ == "__main__":
    sys.exit(main())
