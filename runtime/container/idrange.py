"""The id range of a container's user namespace.

Ranges are chosen at random from a large space, not in order: CRIU's images and the upper directory's owners hold host
ids, and a container keeps its range when it moves if, as nearly always, the other host has it free.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

SIZE = 65536
# Above what /etc/subuid and systemd's ranges (524288..1878982656 in systemd's UIDS-GIDS.md) give out; below 2**31,
# since some programs hold ids in signed numbers.
FIRST = 1_879_048_192
SLOTS = (2**31 - FIRST) // SIZE


def choose(taken: Iterable[int], wish: int = 0) -> int:
    """The first id of a range that is not TAKEN: WISH if it is free."""
    used = set(taken)
    if wish and wish not in used:
        return wish
    while True:
        base = FIRST + secrets.randbelow(SLOTS) * SIZE
        if base not in used:
            return base
