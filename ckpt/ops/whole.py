"""Waiting for a container's memory after a warm move: it runs before all of it is in place.

Until then its mappings belong to the pager's userfaultfd. Nobody else can track what is written there, so that every
round of a next move would send everything, and everything would be left for the frozen window.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime.container.record import Container
from runtime.errors import TimedOut
from runtime.pager.client import ended_well

PATIENCE = 600.0
"""Seconds. Memory is placed at a GiB a second, but at a tenth of that where a virtual machine must get it first."""
_TICK = 0.02


def wait_whole(container: Container, check: Callable[[], None] = lambda: None) -> None:
    """Until all is in place. CHECK is called now and then and may raise. Raises TimedOut."""
    work = container.paths.run / "criu"
    until = time.monotonic() + PATIENCE
    while not ended_well(work):
        check()
        if time.monotonic() > until:
            raise TimedOut(
                doing="waiting for",
                target=f"the memory of container {container.record.name}",
                why=f"its last restore has not put all of it in place within {PATIENCE:g} s",
                hint="what the pager says is in pager.log beside CRIU's restore.log",
                retry=True,
            )
        time.sleep(_TICK)
