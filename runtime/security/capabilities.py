"""Capabilities by name, and which ones a container gets (capabilities(7), OCI config)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import BadInput

log = logging.getLogger(__name__)

# In the order of their numbers, linux/capability.h.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS: Mapping[str, int] = {name: number for number, name in enumerate(NAMES)}

# What production engines leave to root in a container: enough for package managers, su and
# servers that start as root; nothing that reaches beyond the container's own namespaces.
DEFAULT = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")


def number_of(name: str) -> int:
    """The number of "CAP_CHOWN", "chown", ... Raises BadInput."""
    plain = name.strip().upper()
    full = plain if plain.startswith("CAP_") else f"CAP_{plain}"
    if full not in NUMBERS:
        raise BadInput(
            doing="reading the capability",
            target=repr(name),
            why="Linux has no such capability",
            hint="see capabilities(7)",
        )
    return NUMBERS[full]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The five sets of a process, as numbers."""

    bounding: frozenset[int] = frozenset()
    effective: frozenset[int] = frozenset()
    inheritable: frozenset[int] = frozenset()
    permitted: frozenset[int] = frozenset()
    ambient: frozenset[int] = frozenset()

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any] | None) -> Capabilities:
        """From the spec's `process.capabilities`; without it: none. Raises BadInput.

        Sets that the kernel would refuse together are refused here by name: more effective than
        permitted, or ambient beyond permitted and inheritable.
        """
        spec = spec or {}
        unknown = set(spec) - set(_SETS)
        if unknown:
            raise _bad(sorted(unknown)[0], "isn't one of the sets")
        sets = {name: _numbers(name, spec.get(name)) for name in _SETS}
        capabilities = cls(**sets)
        for name in ("effective", "inheritable", "ambient"):
            # Inheritable beyond the bounding set would be kept through exec by file capabilities.
            limit = "bounding" if name == "inheritable" else "permitted"
            beyond = sets[name] - sets[limit]
            if beyond:
                raise _bad(f"{name}.{NAMES[min(beyond)]}", f"isn't in {limit}")
        missing = capabilities.ambient - capabilities.inheritable
        if missing:
            raise _bad(f"ambient.{NAMES[min(missing)]}", "isn't in inheritable")
        return capabilities

    @classmethod
    def default(cls, add: Iterable[str] = (), drop: Iterable[str] = ()) -> Capabilities:
        """The default set with `drop` taken away and `add` added; "ALL" is allowed in both.

        Nothing is inheritable: it would pass capabilities on to programs with file capabilities
        that a user who isn't root starts.
        """
        dropped, added = _with_all(drop), _with_all(add)
        everything = set(NUMBERS.values())
        usual: set[int] = set() if dropped is None else {NUMBERS[name] for name in DEFAULT}
        start = everything if added is None else usual
        chosen = frozenset((start - (dropped or set())) | (added or set()))
        return cls(bounding=chosen, effective=chosen, permitted=chosen)

    def to_spec(self) -> dict[str, list[str]]:
        """Back to `process.capabilities`; empty sets are left out."""
        sets = {name: sorted(NAMES[number] for number in getattr(self, name)) for name in _SETS}
        return {name: names for name, names in sets.items() if names}

    def plan(self) -> dict[str, Any]:
        """Plain data for `runtime.security.apply.apply_capabilities`."""
        plan: dict[str, Any] = {
            name: sum(1 << number for number in getattr(self, name)) for name in _SETS[:-1]
        }
        plan["ambient"] = sorted(self.ambient)
        return plan

    def names(self) -> frozenset[str]:
        """What processes can ever hold: the bounding set, by name."""
        return frozenset(NAMES[number] for number in self.bounding)

    def beyond(self, available: int) -> list[str]:
        """Those of the permitted set that aren't in the mask `available`, by name.

        In a user namespace of its own a container is given all of them; in the host's one it gets
        what ckpt has (`held()`). The spec wants this logged, not refused.
        """
        return [NAMES[n] for n in sorted(self.permitted) if not available & 1 << n]


def held(status: str = "/proc/self/status") -> int:
    """The permitted set of this process, as a mask."""
    with open(status, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _with_all(names: Iterable[str]) -> set[int] | None:
    """Numbers, or None for ALL."""
    listed = list(names)
    if any(name.strip().upper() in ("ALL", "CAP_ALL") for name in listed):
        return None
    return {number_of(name) for name in listed}


def _numbers(name: str, values: Any) -> frozenset[int]:
    if values is None:
        return frozenset()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _bad(name, "has to be a list of names")
    return frozenset(number_of(value) for value in values)


def _bad(where: str, why: str) -> BadInput:
    return BadInput(doing="reading the spec's", target=f"process.capabilities.{where}", why=why)
