"""Every message that may cross the wire, with its fields.

A message is a map with ``type`` and the fields of that type: no more, no fewer than listed, each
of the kind and within the bounds listed.  Strictness costs nothing, because both ends agreed on
one version first; what may grow lies in the ``features`` of ``hello`` and in the free maps
(``facts``, ``summary``, ``body``), whose readers must check what they take.

Greeting
    hello        both           version and features; the first message in each direction

Transaction (see protocol.py for the exchange)
    preflight    source →       which migration, and what it will need
    report       ← destination  the checks' result; ``ok`` false is a refusal before anything began
    sync_begin   source →       copying starts, the container still runs
    freeze       source →       the frozen window starts
    sent         source →       all was handed to the lanes; ``summary`` counts it
    received     ← destination  all has arrived and was verified
    prepared     ← destination  restored, not one instruction run
    go           source →       committed: run it
    running      ← destination  it runs
    cleaned      source →       the source has forgotten it
    abort        either         given up before COMMIT
    fault        either         a failure that doesn't end the migration, or came after COMMIT

Recovery
    status       asker →        how does your journal stand?
    status_is    ← asked        like this
    settle       asker →        do what decide() says for your role
    settled      ← asked        done

Lanes
    lane_ask     source →       a lane of this kind, please (with the certificate for ``tls``)
    lane_offer   ← destination  this is how to open it

Besides
    note         either         a word between the two ends of one step (missing layers, progress)
    ping, pong   either         alive?
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transport.errors import (
    MAX_LINES,
    PeerFault,
    ProtocolFault,
    TransportFault,
    VersionMismatch,
    one_line,
)

Message = dict[str, Any]

PROTOCOL_VERSION = 1

Check = Callable[[Any], bool]

_ID = re.compile(r"[a-z0-9][a-z0-9-]{7,63}\Z")
_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")
_STATE = re.compile(
    r"(none|planned|checked|syncing|receiving|frozen|received|prepared|committed|running|cleaned"
    r"|aborted)\Z"
)


def _text(limit: int) -> Check:
    return lambda v: isinstance(v, str) and len(v) <= limit


def _number(low: int, high: int) -> Check:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _matches(pattern: re.Pattern[str]) -> Check:
    return lambda v: isinstance(v, str) and pattern.match(v) is not None


def _words(limit: int) -> Check:
    word = _matches(_WORD)
    return lambda v: isinstance(v, list) and len(v) <= limit and all(map(word, v))


def _bytes(limit: int) -> Check:
    return lambda v: isinstance(v, bytes) and len(v) <= limit


def _map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _maps(limit: int) -> Check:
    return lambda v: isinstance(v, list) and len(v) <= limit and all(map(_map, v))


def _one_of(*values: str) -> Check:
    return lambda v: isinstance(v, str) and v in values


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


_NAME = _matches(_ID)
_CODE = _matches(_WORD)
_TIME = _number(0, 1 << 63)  # nanoseconds of CLOCK_REALTIME


@dataclass(frozen=True, slots=True)
class Field:
    """How a field must look; ``default`` fills it in for ``make`` when it may be left out."""

    check: Check
    default: Any = ...

    @property
    def required(self) -> bool:
        return self.default is ...


_FAULT = {
    "code": Field(_CODE),
    "doing": Field(_text(500), ""),
    "target": Field(_text(500), ""),
    "why": Field(_text(4000), ""),
    "hint": Field(_text(2000), ""),
    "retry": Field(_flag, False),
    "facts": Field(_map, {}),
}

SCHEMAS: dict[str, dict[str, Field]] = {
    "hello": {
        "version": Field(_number(1, 1 << 16)),
        "features": Field(_words(64)),
        "software": Field(_text(100)),
    },
    "preflight": {
        "id": Field(_NAME),
        "mode": Field(_one_of("cold", "warm", "lazy"), "cold"),
        "facts": Field(_map, {}),
    },
    "report": {
        "ok": Field(_flag),
        "findings": Field(_maps(1000), []),
        "facts": Field(_map, {}),
    },
    "sync_begin": {"facts": Field(_map, {})},
    "freeze": {"facts": Field(_map, {})},
    "sent": {"summary": Field(_map, {})},
    "received": {"summary": Field(_map, {})},
    "prepared": {"facts": Field(_map, {})},
    "go": {"id": Field(_NAME)},
    "running": {"id": Field(_NAME), "at": Field(_TIME, 0), "facts": Field(_map, {})},
    "cleaned": {"id": Field(_NAME)},
    "abort": dict(_FAULT),
    "fault": dict(_FAULT),
    "status": {"id": Field(_NAME)},
    "status_is": {
        "id": Field(_NAME),
        "role": Field(_one_of("source", "destination", "none"), "destination"),
        "state": Field(_matches(_STATE)),
    },
    "settle": {"id": Field(_NAME), "action": Field(_CODE)},
    "settled": {"id": Field(_NAME), "action": Field(_CODE)},
    "lane_ask": {"kind": Field(_CODE), "certificate": Field(_bytes(16384), b"")},
    "lane_offer": {
        "kind": Field(_CODE),
        "token": Field(_text(128), ""),
        "socket": Field(_text(107), ""),
        "address": Field(_text(100), ""),
        "port": Field(_number(0, 65535), 0),
        "certificate": Field(_bytes(16384), b""),
    },
    "note": {"topic": Field(_CODE), "body": Field(_map, {})},
    "ping": {"n": Field(_number(0, 1 << 63))},
    "pong": {"n": Field(_number(0, 1 << 63))},
}

# These belong to the steps and the link; all others are the transaction's.
BESIDES = frozenset(("lane_ask", "lane_offer", "note", "ping", "pong", "settle", "settled"))


def make(kind: str, /, **fields: Any) -> Message:
    """A valid message of ``kind``; fields with a default may be left out.

    Raises ProtocolFault, so that a mistake shows at the end that makes it.
    """
    schema = SCHEMAS.get(kind, {})
    message: Message = {"type": kind}
    for name, field in schema.items():
        if not field.required:
            message[name] = copy.copy(field.default)
    message.update(fields)
    return check(message)


def check(message: Mapping[str, Any]) -> Message:
    """The message, if it is one that may cross the wire.  Raises ProtocolFault."""
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in SCHEMAS:
        raise _refuse("a message", f"unknown type {_brief(kind)}")
    schema = SCHEMAS[kind]
    for name in message:
        if name != "type" and name not in schema:
            raise _refuse(f"message {kind!r}", f"unknown field {_brief(name)}")
    for name, field in schema.items():
        if name not in message:
            raise _refuse(f"message {kind!r}", f"field {name!r} is missing")
        if not field.check(message[name]):
            raise _refuse(f"message {kind!r}", f"field {name!r} may not be {_brief(message[name])}")
    return dict(message)


def greet(software: str, features: list[str]) -> Message:
    """The first message that each end sends."""
    return make("hello", version=PROTOCOL_VERSION, features=features, software=software)


def check_greeting(hello: Message, *, needed: frozenset[str] = frozenset()) -> frozenset[str]:
    """The peer's features.  Raises VersionMismatch: other version, or a needed feature missing."""
    theirs = frozenset(hello["features"])
    missing = needed - theirs
    why = ""
    if hello["version"] != PROTOCOL_VERSION:
        why = f"it speaks protocol {hello['version']}, this ckpt speaks {PROTOCOL_VERSION}"
    elif missing:
        why = f"it lacks {', '.join(sorted(missing))}"
    if why:
        raise VersionMismatch(
            doing="greeting",
            target=f"the other end ({one_line(hello['software'], 100)})",
            why=why,
            hint="install the same version of ckpt on both hosts",
        )
    return theirs


def fault_fields(fault: Exception, *, code: str = "") -> dict[str, Any]:
    """The fields of an ``abort`` or ``fault`` message for any of our exceptions.

    Works with every fault of this project: they share ``doing``, ``target``, ``why``, ``hint``
    and ``retry``. Some have ``lines`` of a log and the path of the whole ``log``.
    """
    facts: dict[str, Any] = {}
    if lines := getattr(fault, "lines", ()):
        facts["lines"] = [one_line(str(line), 500) for line in lines[:MAX_LINES]]
    if log := getattr(fault, "log", ""):
        facts["log"] = one_line(str(log), 500)
    return {
        "code": code or _snake(type(fault).__name__),
        "doing": one_line(str(getattr(fault, "doing", "")), 500),
        "target": one_line(str(getattr(fault, "target", "")), 500),
        "why": one_line(str(getattr(fault, "why", fault)), 4000),
        "hint": one_line(str(getattr(fault, "hint", "")), 2000),
        "retry": bool(getattr(fault, "retry", False)),
        "facts": facts,
    }


def peer_fault(message: Message) -> TransportFault:
    """The exception for an ``abort`` or ``fault`` message."""
    if message["code"] == "version_mismatch":
        # Whichever end sees it first, it is one reason.
        return VersionMismatch(
            doing=message["doing"],
            target=message["target"],
            why=message["why"],
            hint=message["hint"],
        )
    return PeerFault(
        doing=message["doing"] or "working at",
        target=message["target"] or "the other host",
        why=message["why"] or message["code"],
        hint=message["hint"],
        retry=message["retry"],
        code=message["code"],
        fields=message["facts"],
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()[:64] or "error"


def _brief(value: Any) -> str:
    return one_line(repr(value), 80)


def _refuse(target: str, why: str) -> ProtocolFault:
    return ProtocolFault(doing="checking", target=target, why=why)
