"""Which device nodes a container may use: the spec's ordered rules, brought into one form.

Cgroup v1 has a list in the kernel, v2 a BPF program that answers each access. Both are fed from
the same `DevicePolicy`: a default, and exceptions from it. The form is that of the v1 kernel code
(security/device_cgroup.c), and `allows` states its meaning:

- default deny: an access passes if **one** exception covers all of it;
- default allow: an access fails if any exception touches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import BadInput

ANY = -1  # every major or minor number


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """`kind` "a" (all), "c" or "b"; numbers or ANY; `access` out of "rwm" (m: mknod)."""

    allow: bool
    kind: str = "a"
    major: int = ANY
    minor: int = ANY
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """What `rules` come to. Exceptions: (kind, major, minor) -> access letters."""

    default_allow: bool = True
    exceptions: Mapping[tuple[str, int, int], frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: Iterable[DeviceRule]) -> DevicePolicy:
        """Apply the rules in order, as writes to devices.allow and devices.deny would."""
        default_allow = True
        exceptions: dict[tuple[str, int, int], frozenset[str]] = {}
        for rule in rules:
            if rule.kind == "a":
                default_allow, exceptions = rule.allow, {}
                continue
            key = (rule.kind, rule.major, rule.minor)
            had = exceptions.get(key, frozenset())
            letters = frozenset(rule.access)
            now = had - letters if rule.allow == default_allow else had | letters
            if now:
                exceptions[key] = now
            else:
                exceptions.pop(key, None)
        return cls(default_allow, exceptions)

    def allows(self, kind: str, major: int, minor: int, access: str) -> bool:
        """Whether an access with all of the letters in `access` passes."""
        wanted = frozenset(access)
        touching = [
            letters
            for (kind_, major_, minor_), letters in self.exceptions.items()
            if kind_ == kind and major_ in (ANY, major) and minor_ in (ANY, minor)
        ]
        if self.default_allow:
            return not any(wanted & letters for letters in touching)
        return any(wanted <= letters for letters in touching)


def rules_from_oci(items: Any) -> tuple[DeviceRule, ...]:
    """`linux.resources.devices`, checked. Raises BadInput."""
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise _bad("has to be a list")
    return tuple(_rule(item) for item in items)


def rules_to_oci(rules: Iterable[DeviceRule]) -> list[dict[str, Any]]:
    """Back to the spec's form."""
    out: list[dict[str, Any]] = []
    for rule in rules:
        item: dict[str, Any] = {"allow": rule.allow}
        if rule.kind != "a":
            item["type"] = rule.kind
        if rule.major != ANY:
            item["major"] = rule.major
        if rule.minor != ANY:
            item["minor"] = rule.minor
        item["access"] = rule.access
        out.append(item)
    return out


def default_rules() -> tuple[DeviceRule, ...]:
    """Nothing but the nodes that every container has, and making nodes that can't be opened."""
    nodes = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, ANY)]
    return (
        DeviceRule(False),
        DeviceRule(True, "c", access="m"),
        DeviceRule(True, "b", access="m"),
        *(DeviceRule(True, "c", major, minor) for major, minor in nodes),
    )


def _bad(why: str) -> BadInput:
    return BadInput(doing="reading the spec's resources", target="devices", why=why)


def _number(item: Mapping[str, Any], key: str, limit: int) -> int:
    value = item.get(key)
    if value is None or value == ANY:
        return ANY
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise _bad(f"{key} {value!r} isn't a device number")
    return value


def _rule(item: Any) -> DeviceRule:
    if not isinstance(item, Mapping):
        raise _bad("each rule has to be an object")
    unknown = set(item) - {"allow", "type", "major", "minor", "access"}
    if unknown:
        raise _bad(f"{sorted(unknown)[0]} is not a field of a rule")
    allow, kind = item.get("allow"), item.get("type") or "a"
    access = item.get("access") or "rwm"
    if not isinstance(allow, bool):
        raise _bad("each rule needs allow: true or false")
    if kind not in ("a", "b", "c"):
        raise _bad(f"type {kind!r} is none of a, b, c")
    if not isinstance(access, str) or not set(access) <= set("rwm"):
        raise _bad(f"access {access!r} has letters other than r, w, m")
    rule = DeviceRule(
        allow, kind, _number(item, "major", 2**12), _number(item, "minor", 2**20), access
    )
    if kind == "a" and (rule.major, rule.minor) != (ANY, ANY):
        raise _bad("a rule for all types can't name numbers: use type b and c")
    if kind == "a" and set(access) != set("rwm"):
        raise _bad("a rule for all types can't be for a part of rwm: use type b and c")
    return rule
