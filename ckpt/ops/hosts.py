"""Other hosts by name: who they are, which key they have shown, how ckpt is started there.

Two files below the root, each with facts of its own. `hosts.json` says what a name means; `known_hosts` has the keys
that a person has accepted, in OpenSSH's format, and counts besides the user's own files. A key gets in there only by
its fingerprint: nothing is ever believed because it was the first to come.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckpt.ops.host import Host
from runtime.errors import BadInput, Conflict, NotFound, SystemFault
from runtime.files import locked, publish, publish_json, read_json
from transport import ssh
from transport.errors import HostKeyChanged, UnknownHost
from transport.known_hosts import known_keys
from transport.ssh_reach import OfferedKey, offered_key
from transport.ssh_settings import ConfigFiles
from transport.target import BadTarget, parse_target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Named:
    """A host that has a name here. PLACE: what known_hosts calls it; COMMAND: how ckpt is started there."""

    name: str
    target: str
    place: str
    command: str = "ckpt"
    added_ns: int = 0


class Registry:
    """The names of one ckpt root."""

    def __init__(self, host: Host) -> None:
        root = host.paths.root
        self._host = host
        self._file = root / "hosts.json"
        self._lock = root / "hosts.lock"
        self.keys_file = root / "known_hosts"

    # ---- reading

    def all(self) -> list[Named]:
        """By name. Raises SystemFault when the file can't be understood."""
        try:
            raw = read_json(self._file)
            if raw["format"] != _FORMAT:
                raise ValueError(f"its format is {raw['format']!r}, not {_FORMAT}")
            return sorted((_named(one) for one in raw["hosts"]), key=lambda one: one.name)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemFault(
                doing="reading",
                target=str(self._file),
                why=str(error) or type(error).__name__,
                hint="delete it, and add the hosts again",
            ) from error

    def get(self, name: str) -> Named:
        """Raises NotFound."""
        for one in self.all():
            if one.name == name:
                return one
        raise NotFound(
            doing="looking for",
            target=f"host {name}",
            why="there is none with that name",
            hint="ckpt host ls shows those that are there",
        )

    def meant(self, text: str) -> Named:
        """What TEXT means as a target: a name of ours, else [USER@]HOST[:PORT] as it stands."""
        known = self.all()
        for one in known:
            if one.name == text:
                return one
        # A journal of a migration has the target, not the name.
        return next((one for one in known if one.target == text), Named("", text, ""))

    def fingerprints(self, named: Named) -> list[str]:
        """Those of the keys that were accepted for it here."""
        keys = known_keys(named.place, [str(self.keys_file)]).trusted
        return [f"{key.kind} {key.fingerprint}" for key in keys]

    # ---- writing

    def add(self, name: str, target: str, accept: Callable[[OfferedKey], bool]) -> Named:
        """Give TARGET the name NAME. ACCEPT is asked about its key unless a file has it already.

        Raises BadInput, Conflict (the name means another host), HostKeyChanged, UnknownHost (not accepted),
        Unreachable. Then nothing has changed.
        """
        if not _NAME.match(name):
            raise BadInput(
                doing="adding",
                target=f"host {name!r}",
                why="a name has letters, digits, '.', '_' and '-', and begins with one of the first two",
            )
        where = str(parse_target(target))
        self._refuse_another(name, where)
        key = offered_key(target, files=self._files())
        if not key.trusted and not accept(key):
            raise _unaccepted(name, target, key)
        self._host.ready()
        with locked(self._lock, what="the names of hosts"):
            self._refuse_another(name, where)
            if not key.trusted:
                self._write_key(key)
            known = {one.name: one for one in self.all()}
            fresh = Named(name, where, key.name, added_ns=time.time_ns())
            known[name] = replace(known.get(name, fresh), place=key.name)
            self._write(known)
        return known[name]

    def _refuse_another(self, name: str, target: str) -> None:
        for one in self.all():
            if one.name == name and one.target != target:
                raise Conflict(
                    doing="adding",
                    target=f"host {name}",
                    why=f"that name means {one.target}",
                    hint=f"ckpt host rm {name}",
                )

    def set_command(self, name: str, command: str) -> None:
        """How ckpt is started at NAME from now on."""
        with locked(self._lock, what="the names of hosts"):
            known = {one.name: one for one in self.all()}
            known[name] = replace(self.get(name), command=command)
            self._write(known)

    def remove(self, name: str) -> Named:
        """Forget NAME, and its key unless another name has the same host. Raises NotFound."""
        gone = self.get(name)
        with locked(self._lock, what="the names of hosts"):
            left = {one.name: one for one in self.all() if one.name != name}
            self._write(left)
            if all(one.place != gone.place for one in left.values()):
                lines = self._lines()
                kept = [line for line in lines if line.split()[:1] != [gone.place]]
                if kept != lines:
                    self._write_lines(kept)
        return gone

    def _write(self, known: dict[str, Named]) -> None:
        hosts = [asdict(known[name]) for name in sorted(known)]
        publish_json(self._file, {"format": _FORMAT, "hosts": hosts})

    def _write_key(self, key: OfferedKey) -> None:
        line = f"{key.name} {key.kind} {base64.b64encode(key.blob).decode()}"
        lines = self._lines()
        if line not in lines:
            self._write_lines([*lines, line])

    def _lines(self) -> list[str]:
        try:
            return self.keys_file.read_text().splitlines()
        except FileNotFoundError:
            return []

    def _write_lines(self, lines: list[str]) -> None:
        publish(self.keys_file, "".join(f"{line}\n" for line in lines).encode())

    def _files(self) -> ConfigFiles:
        return replace(ConfigFiles.from_environment(), more_known=self.keys_file)

    # ---- going there

    def connect(self, text: str, *, timeout: float | None = None) -> ssh.Session:
        """Log in at a name or at [USER@]HOST[:PORT]. Raises what transport.ssh.connect does."""
        named = self.meant(text)
        try:
            return ssh.connect(named.target, files=self._files(), timeout=timeout)
        except HostKeyChanged as fault:
            if named.name and str(self.keys_file) in fault.why:
                fault.hint = (
                    "somebody may be listening in; only if the host was really set up anew: "
                    f"ckpt host rm {named.name}, then ckpt host add {named.name} {named.target}"
                )
            raise

    def command(self, text: str) -> list[str]:
        """How ckpt is started there; $CKPT_REMOTE says it for all hosts."""
        return (os.environ.get("CKPT_REMOTE") or self.meant(text).command).split()


def accepts(fingerprint_given: str) -> Callable[[OfferedKey], bool]:
    """Accept that key alone whose fingerprint was given: SHA256:…, as ssh-keygen -l shows it."""

    def accept(key: OfferedKey) -> bool:
        if key.fingerprint == fingerprint_given:
            return True
        raise HostKeyChanged(
            doing="checking the host key of",
            target=key.name,
            why=f"it shows {key.kind} {key.fingerprint}, not {fingerprint_given}",
            hint="compare with ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub at that host's own console",
        )

    return accept


def _unaccepted(name: str, target: str, key: OfferedKey) -> UnknownHost:
    return UnknownHost(
        doing="checking the host key of",
        target=key.name,
        why=f"its key {key.kind} {key.fingerprint} is not known here, and nobody has accepted it",
        hint="if ssh-keygen -l shows the same at its own console: "
        f"ckpt host add {name} {target} --accept {key.fingerprint}",
    )


def _named(raw: Any) -> Named:
    named = Named(**raw)
    texts = (named.name, named.target, named.place, named.command)
    if not all(isinstance(text, str) for text in texts) or not _NAME.match(named.name):
        raise ValueError(f"{raw!r} is no host")
    try:
        parse_target(named.target)
    except BadTarget as error:
        raise ValueError(str(error)) from error
    return named
