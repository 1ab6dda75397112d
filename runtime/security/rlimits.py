"""Resource limits of the container's first process (OCI `process.rlimits`, getrlimit(2)).

Lowering a hard limit is always possible, raising one needs CAP_SYS_RESOURCE **in the first user
namespace**: a container's own user namespace doesn't help. Hosts that are containers or small
virtual machines themselves often lack it. So what is asked for is compared with what this process
has, before anything is made.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import BadInput, NotPermitted
from runtime.security.capabilities import NUMBERS, held

NAMES: Mapping[str, int] = {
    name: getattr(resource, name)
    for name in (
        "RLIMIT_AS",
        "RLIMIT_CORE",
        "RLIMIT_CPU",
        "RLIMIT_DATA",
        "RLIMIT_FSIZE",
        "RLIMIT_MEMLOCK",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_RSS",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
        "RLIMIT_SIGPENDING",
        "RLIMIT_STACK",
    )
} | {"RLIMIT_LOCKS": 10}  # unknown to Python; Linux keeps a number for it and enforces nothing
_INFINITY = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit; -1 is unlimited, as `resource.setrlimit` wants it."""

    name: str
    soft: int
    hard: int

    @property
    def number(self) -> int:
        return NAMES[self.name]

    def plan(self) -> dict[str, int]:
        """Plain data for the stage that sets it."""
        return {"resource": self.number, "soft": self.soft, "hard": self.hard}

    def to_spec(self) -> dict[str, Any]:
        soft, hard = (_INFINITY if value < 0 else value for value in (self.soft, self.hard))
        return {"type": self.name, "soft": soft, "hard": hard}


def from_spec(items: Any) -> tuple[Limit, ...]:
    """`process.rlimits`, checked: known types, each once, soft within hard. Raises BadInput."""
    if items is None:
        return ()
    if not isinstance(items, list):
        raise _bad("", "has to be a list")
    limits = tuple(_limit(item) for item in items)
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise _bad(name, "is there twice")
    return limits


def parse(text: str) -> Limit:
    """ "nofile=1024:4096", "core=0", "memlock=unlimited". Raises BadInput."""
    name, equals, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    full = f"RLIMIT_{name.strip().upper()}"
    if not equals or full not in NAMES:
        known = ", ".join(sorted(each.removeprefix("RLIMIT_").lower() for each in NAMES))
        raise _bad(text, "isn't NAME=SOFT[:HARD]", f"names are {known}")
    limit = Limit(full, _value(text, soft), _value(text, hard if colon else soft))
    _check_order(limit)
    return limit


def applicable(
    limits: tuple[Limit, ...], *, clamp: bool = False, may_raise: bool | None = None
) -> tuple[tuple[Limit, ...], list[str]]:
    """The limits that this process can set, and a sentence for each that had to be lowered.

    Without `clamp` a hard limit above this process's own raises NotPermitted instead. `may_raise`:
    whether CAP_SYS_RESOURCE is held in the first user namespace (None: ask the kernel).
    """
    if may_raise is None:
        may_raise = bool(held() & 1 << NUMBERS["CAP_SYS_RESOURCE"]) and _in_first_namespace()
    if may_raise:
        return limits, []
    result: list[Limit] = []
    notes: list[str] = []
    for limit in limits:
        own = _own_hard(limit.number)
        if not _above(limit.hard, own):
            result.append(limit)
            continue
        why = f"raising the hard limit above this host's {own} needs CAP_SYS_RESOURCE"
        if not clamp:
            raise NotPermitted(
                doing="setting",
                target=f"{limit.name} to {_text(limit.hard)}",
                why=why,
                hint=f"a hard limit of at most {own}, or run ckpt with CAP_SYS_RESOURCE",
            )
        soft = own if _above(limit.soft, own) else limit.soft
        result.append(Limit(limit.name, soft, own))
        notes.append(f"{limit.name}: {_text(limit.hard)} lowered to {own}: {why}")
    return tuple(result), notes


def _own_hard(number: int) -> int:
    try:
        return resource.getrlimit(number)[1]
    except (OSError, ValueError):
        return -1


def _in_first_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == ["0", "0", str(2**32 - 1)]
    except OSError:
        return False


def _above(value: int, other: int) -> bool:
    return other >= 0 and (value < 0 or value > other)


def _text(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def _value(text: str, value: str) -> int:
    value = value.strip().lower()
    if value in ("unlimited", "-1"):
        return -1
    if not value.isascii() or not value.isdigit() or int(value) > _INFINITY:
        raise _bad(text, f"{value!r} isn't a number or unlimited")
    return _signed(int(value))


def _signed(value: int) -> int:
    """RLIM_INFINITY is the highest 64-bit number for the kernel and -1 for Python."""
    return -1 if value > 2**63 - 1 else value


def _limit(item: Any) -> Limit:
    if not isinstance(item, Mapping):
        raise _bad("", "each entry has to be an object")
    unknown = set(item) - {"type", "soft", "hard"}
    if unknown:
        raise _bad(sorted(unknown)[0], "is not a field of a limit")
    name, soft, hard = item.get("type"), item.get("soft"), item.get("hard")
    if not isinstance(name, str) or name not in NAMES:
        raise _bad(repr(name), "is not a limit that Linux has")
    for value in (soft, hard):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= _INFINITY:  # type: ignore[operator]
            raise _bad(name, f"{value!r} isn't a number from 0 to 2**64-1")
    assert isinstance(soft, int) and isinstance(hard, int)
    limit = Limit(name, _signed(soft), _signed(hard))
    _check_order(limit)
    return limit


def _check_order(limit: Limit) -> None:
    if limit.hard >= 0 and (limit.soft < 0 or limit.soft > limit.hard):
        raise _bad(limit.name, f"soft {_text(limit.soft)} is above hard {limit.hard}")


def _bad(where: str, why: str, hint: str = "") -> BadInput:
    target = f"process.rlimits {where}".strip()
    return BadInput(doing="reading the spec's", target=target, why=why, hint=hint)
