"""What a host is, for people who read a report: what both sides of a migration tell each other."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from ckpt.ops import dialect
from ckpt.ops.host import Host
from runtime.errors import RuntimeFault
from transport.errors import one_line

_LINES, _NAME, _VALUE = 16, 40, 200


def environment(host: Host) -> dict[str, str]:
    try:
        criu = host.criu.text
    except RuntimeFault as fault:
        criu = f"none: {fault.why}"
    return {
        "host": os.uname().nodename,
        "ckpt": dialect.software(),
        "CRIU": criu,
        "kernel": platform.release(),
        "processor": f"{os.cpu_count()} x {platform.machine()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "cgroups": host.layout.kind,
        "Python": platform.python_version(),
    }


def checked(told: object) -> dict[str, str]:
    """What another host says of itself: short lines, not many."""
    if not isinstance(told, Mapping):
        return {}
    return {
        one_line(str(name), _NAME): one_line(str(value), _VALUE)
        for name, value in list(told.items())[:_LINES]
    }
