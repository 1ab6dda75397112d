"""User and group ids on disk and in a container.

A container with a user namespace owns a range of host ids: its root is `base`, its id 1000 is
base + 1000. Its upper directory has those host ids on disk; what travels has the container's own.
"""

from __future__ import annotations

# (first host id, how many). None: the ids on disk are the ids meant.
IdShift = tuple[int, int] | None

MAX_ID = 2**32 - 2  # 2**32 - 1 is "no id" to chown(2)


def to_container(host_id: int, shift: IdShift) -> int:
    """The container's id of a host id. Raises ValueError if it isn't in the container's range."""
    if shift is None:
        return host_id
    base, size = shift
    if not base <= host_id < base + size:
        raise ValueError(f"the id {host_id} lies outside the container's {base}..{base + size - 1}")
    return host_id - base


def to_host(container_id: int, shift: IdShift) -> int:
    """The host id of a container's id. Raises ValueError if the range is too small for it."""
    if not 0 <= container_id <= MAX_ID:
        raise ValueError(f"{container_id} is no user or group id")
    if shift is None:
        return container_id
    base, size = shift
    if container_id >= size:
        raise ValueError(f"the id {container_id} doesn't fit into the container's {size} ids")
    return base + container_id
