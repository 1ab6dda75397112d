"""Which tracker this host has."""

from __future__ import annotations

import os
from collections.abc import Callable

from runtime.errors import BadInput
from runtime.tracking import pagemap, wp_async
from runtime.tracking.compare import Compare
from runtime.tracking.soft_dirty import SoftDirty
from runtime.tracking.tracker import Select, Tracker
from runtime.tracking.vmas import anonymous
from runtime.tracking.wp_async import WpAsync

VARIABLE = "CKPT_TRACKER"
"""In the environment: the name of the one to use, where the best isn't wanted."""
BY_NAME: dict[str, Callable[[Select], Tracker]] = {
    kind.name: kind for kind in (WpAsync, SoftDirty, Compare)
}


def best(select: Select = anonymous) -> Tracker:
    """WP_ASYNC, else soft-dirty, else comparison, which always works; or the one that CKPT_TRACKER names.

    Raises BadInput for a name that there isn't, Unsupported where this host hasn't got the one that is named.
    """
    if name := os.environ.get(VARIABLE, ""):
        if name not in BY_NAME:
            raise BadInput(
                doing="choosing", target=f"tracker {name!r}", why="there is none of that name",
                hint=f"{VARIABLE} may be {', '.join(BY_NAME)}",
            )  # fmt: skip
        return BY_NAME[name](select)
    if wp_async.supported():
        return WpAsync(select)
    if pagemap.supports_soft_dirty():
        return SoftDirty(select)
    return Compare(select)
