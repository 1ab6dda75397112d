"""This host's processor, as far as a program may have adapted itself to it."""

from __future__ import annotations


def cpu_features() -> tuple[str, ...]:
    """The flags of /proc/cpuinfo (features on arm), sorted."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return tuple(sorted(value.split()))
    return ()
