"""`ckpt host setup`: this ckpt and this CRIU on another machine. Looks first, does what is missing, says each step.

The other machine needs sshd, root, Python 3.11 and tar. What it lacks of Debian's packages it installs from its own
mirror; everything else is sent from here.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckpt.ops.elsewhere import cargo, far, visit
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry
from runtime.criu.binary import Criu
from runtime.errors import Unsupported
from transport.errors import ProtocolFault, one_line
from transport.ssh import Session

DEFAULT_PREFIX = "/usr/local"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """What far.py found there."""

    uid: int
    system: str
    machine: str
    kernel: str
    python: tuple[int, int]
    missing: tuple[str, ...]
    apt: bool
    code: str
    answers: str
    foreign: bool
    criu: str

    @classmethod
    def of(cls, raw: dict[str, Any], where: str) -> Machine:
        """Raises ProtocolFault for anything that far.py doesn't say."""
        try:
            major, minor = (int(number) for number in raw["python"])
            criu, missing = raw["criu"]["version"], raw["missing"]
            texts = {
                name: one_line(str(raw[name]), 200)
                for name in ("system", "machine", "kernel", "code", "answers")
            }
            if not far.numbers(criu) and criu:
                raise ValueError(f"CRIU {criu!r}")
            return cls(
                uid=int(raw["uid"]),
                python=(major, minor),
                missing=tuple(one_line(str(name), 60) for name in missing[:50]),
                apt=raw["apt"] is True,
                foreign=raw["foreign"] is True,
                criu=str(criu),
                **texts,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolFault(
                doing="reading what was found at", target=where, why=one_line(str(error))
            ) from error


def look(session: Session, prefix: str) -> Machine:
    """Raises TransportFault."""
    return Machine.of(visit.ask(session, "look", prefix), str(session.target))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine needs to be like this one."""

    packages: tuple[str, ...]
    code: bool
    criu: bool

    @property
    def nothing(self) -> bool:
        return not (self.packages or self.code or self.criu)


def plan(found: Machine, criu: Criu) -> Plan:
    code = found.code != cargo.own_digest() or not found.answers
    return Plan(found.missing, code, found.criu != criu.text)


def set_up(host: Host, name: str, *, prefix: str, dry_run: bool, say: Say) -> dict[str, Any]:
    """Make NAME's machine like this one; returns the plan, and what was done.

    Raises NotFound (no such name), Unsupported (another processor, not root, packages but no apt), TransportFault.
    """
    hosts = Registry(host)
    named = hosts.get(name)
    criu = host.criu
    with hosts.connect(name) as session:
        found = look(session, prefix)
        say(
            f"{name}: {found.system}, {found.machine}, Linux {found.kernel}, Python {_dotted(found)}"
        )
        wanted = plan(found, criu)
        _refuse(name, found, wanted, prefix)
        _announce(say, found, wanted, criu, dry_run)
        if not dry_run:
            if wanted.packages:
                visit.ask(session, "packages", *wanted.packages, seconds=visit.WORKING)
            if wanted.code or wanted.criu:
                _send(session, found, wanted, prefix, criu, say)
    if not dry_run:
        command = "ckpt" if prefix == DEFAULT_PREFIX else f"{prefix}/bin/ckpt"
        if named.command != command:
            hosts.set_command(name, command)
    return {"host": name, "target": named.target, "dry_run": dry_run, **asdict(wanted)}


def _refuse(name: str, found: Machine, wanted: Plan, prefix: str) -> None:
    why = hint = ""
    if found.machine != platform.machine():
        why = f"its processor is {found.machine}, here it is {platform.machine()}"
    elif found.uid != 0:
        why, hint = "the login there isn't root's", f"ckpt host add {name} root@HOST"
    elif wanted.packages and not found.apt:
        why = f"it has no apt, and lacks what Debian calls {', '.join(wanted.packages)}"
        hint = "install them there"
    elif found.foreign and wanted.code:
        why = f"{prefix}/bin/ckpt there belongs to another installation"
        hint = "remove it, or choose another --prefix"
    if why:
        raise Unsupported(doing="setting up", target=f"host {name}", why=why, hint=hint)


def _announce(say: Say, found: Machine, wanted: Plan, criu: Criu, dry_run: bool) -> None:
    verb = "would be" if dry_run else "is being"
    if wanted.packages:
        say(f"packages: {' '.join(wanted.packages)} {verb} installed by its apt")
    if wanted.criu:
        say(f"CRIU: {criu.text} {verb} sent ({found.criu or 'none'} there)")
    if wanted.code:
        there = "another one" if found.code else "none"
        say(f"ckpt: this one {verb} sent ({there} there)")
    if wanted.nothing:
        say("nothing to do: packages, ckpt and CRIU are as here")


def _send(
    session: Session, found: Machine, wanted: Plan, prefix: str, criu: Criu, say: Say
) -> None:
    with tempfile.TemporaryDirectory(prefix="ckpt-setup-", dir="/var/tmp") as work:
        tree = Path(work) / "tree"
        tree.mkdir()
        if wanted.criu:
            cargo.fill_criu(tree / "criu", criu)
        if wanted.code:
            cargo.fill_site(tree / "site", found.python)
            cargo.fill_units(tree / "units")
        archive = Path(work) / "tree.tar.gz"
        size = cargo.pack(tree, archive)
        say(f"sending {size / 2**20:.0f} MiB")
        answer = visit.send(session, archive, "install", prefix)
    did = answer.get("did")
    for line in did if isinstance(did, list) else []:
        say(f"installed {one_line(str(line), 200)}")


def _dotted(found: Machine) -> str:
    return ".".join(map(str, found.python))
