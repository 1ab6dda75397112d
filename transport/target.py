"""``[USER@]HOST[:PORT]`` as people type it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transport.errors import TransportFault


class BadTarget(TransportFault):
    """Not a host that could be meant."""


# Hosts may be aliases of ~/.ssh/config, so any plain word is fine; what a shell, an option parser
# or an address parser would take for something else is not.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253})\Z")
_ADDRESS6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?\Z")
_USER = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@\\-]{0,63})\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to: ``user`` and ``port`` None when it is left to the configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse_target(text: str) -> Target:
    """Parse ``[USER@]HOST[:PORT]``; an IPv6 address stands in brackets.  Raises BadTarget."""
    user, at, place = text.rpartition("@")
    if at and not _USER.match(user):
        raise _bad(text, f"{user!r} is no user name")
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _bad(text, "the address in brackets doesn't end")
        port = rest[1:]
        if rest and not port:
            raise _bad(text, "a port should follow the colon")
        valid = ":" in host and _ADDRESS6.match(host)
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise _bad(text, "more than one colon", "write an IPv6 address as [ADDRESS]")
        if colon and not port:
            raise _bad(text, "a port should follow the colon")
        valid = _HOST.match(host)
    if not valid:
        raise _bad(text, f"{host!r} is no host name" if host else "no host is named")
    if port and not (_PORT.match(port) and 0 < int(port) < 65536):
        raise _bad(text, f"{port!r} is no port")
    return Target(host, user if at else None, int(port) if port else None)


def _bad(text: str, why: str, hint: str = "") -> BadTarget:
    return BadTarget(
        doing="reading", target=f"host {text!r}", why=why, hint=hint or "[USER@]HOST[:PORT]"
    )
