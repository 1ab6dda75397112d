"""CRIU's inventory image: what a restore takes from it and ours shouldn't."""

from __future__ import annotations

from images.image_file import build_image, parse_image

_NAME = "inventory.img"
_SKIP = 2
"""NETWORK_LOCK_SKIP in criu/include/cr_options.h."""


def without_lock(data: bytes) -> bytes:
    """The inventory of a dump with a locked network, for a restore that locks nothing. Raises Corrupt.

    A restore's network namespace is new, and nobody can reach it before we let them. CRIU would lock it with nftables
    all the same, and giving that back takes the kernel 13 to 17 ms of the frozen window (it waits for an RCU grace
    period).
    """
    entries = parse_image(data, _NAME, "INVENTORY")
    for entry in entries:
        if "network_lock_method" in entry:
            entry["network_lock_method"] = _SKIP
    return build_image("INVENTORY", entries)
