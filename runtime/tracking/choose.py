"""Which tracker this host has."""

from __future__ import annotations

from runtime.tracking import pagemap, wp_async
from runtime.tracking.compare import Compare
from runtime.tracking.soft_dirty import SoftDirty
from runtime.tracking.tracker import Select, Tracker
from runtime.tracking.vmas import anonymous
from runtime.tracking.wp_async import WpAsync


def best(select: Select = anonymous) -> Tracker:
    """WP_ASYNC, else soft-dirty, else comparison, which always works."""
    if wp_async.supported():
        return WpAsync(select)
    if pagemap.supports_soft_dirty():
        return SoftDirty(select)
    return Compare(select)
