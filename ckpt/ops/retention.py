"""`ckpt checkpoints prune`: which checkpoints may go, so that a host that takes them daily doesn't fill up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.ops.host import Host
from images.errors import Conflict as InUse
from images.errors import NotFound as Gone
from images.store import Listing
from runtime.errors import BadInput

_AGE = re.compile(r"([0-9]{1,6})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Policy:
    """KEEP: the newest so many of each container stay. OLDER_THAN: seconds; younger ones stay. CONTAINER: only its."""

    keep: int | None = None
    older_than: int | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """One checkpoint that may go. kept: why it is there still; "" if it is gone (or would be, in a dry run)."""

    name: str
    container: str
    created_ns: int
    size: int
    kept: str = ""


def parse_age(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `7d`, `2w`. Raises BadInput."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise BadInput(
            doing="reading", target=f"age {text!r}", why="it is a number and s, m, h, d or w"
        )
    return int(match[1]) * _SECONDS[match[2]]


def choose(listings: Sequence[Listing], policy: Policy, now_ns: int) -> list[Listing]:
    """Those that POLICY lets go, oldest first. What cannot be read is never chosen: nobody knows what it is."""
    if policy.keep is None and policy.older_than is None:
        raise BadInput(
            doing="pruning",
            target="checkpoints",
            why="nothing says which may go",
            hint="--keep N, --older-than AGE, or both",
        )
    seen: Counter[str] = Counter()
    chosen = []
    known = [(entry.manifest, entry) for entry in listings if entry.manifest is not None]
    for manifest, entry in sorted(
        known, key=lambda pair: (pair[0].created, pair[1].name), reverse=True
    ):
        owner = manifest.container_name
        if policy.container is not None and owner != policy.container:
            continue
        seen[owner] += 1
        if policy.keep is not None and seen[owner] <= policy.keep:
            continue
        if policy.older_than is not None and now_ns - manifest.created < policy.older_than * 10**9:
            continue
        chosen.append(entry)
    return chosen[::-1]


def prune(host: Host, policy: Policy, now_ns: int, *, dry_run: bool = False) -> list[Pruned]:
    """Remove what POLICY lets go; what is being restored or exported stays. DRY_RUN: only say what."""
    found = []
    for entry in choose(host.store.list(), policy, now_ns):
        assert entry.manifest is not None
        kept = ""
        if not dry_run:
            try:
                host.store.remove(entry.name)
            except InUse as fault:
                kept = fault.why
            except Gone:
                continue
        found.append(
            Pruned(
                entry.name,
                entry.manifest.container_name,
                entry.manifest.created,
                entry.size,
                kept,
            )
        )
    return found
