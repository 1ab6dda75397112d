"""The huge page sizes of this kernel."""

from __future__ import annotations

import os


def page_sizes() -> list[str]:
    """The huge page sizes of this kernel, named as in the files of the controller."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except FileNotFoundError:
        return []
    sizes = sorted(int(name.rpartition("-")[2].removesuffix("kB")) for name in names)
    return [_page_size(kilo) for kilo in sizes]


def _page_size(kilo: int) -> str:
    for unit, scale in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilo >= scale:
            return f"{kilo // scale}{unit}"
    return f"{kilo}KB"
