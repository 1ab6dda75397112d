"""A process on which a container's life hangs for a moment is kept out of harm's way."""

from __future__ import annotations

import contextlib
from pathlib import Path


def shelter(pid: int, cgroup: str) -> None:
    """The kernel won't choose PID when memory is short, nor does it end with the session or service that started it.

    CGROUP: a file `cgroup.procs`, see runtime/cgroups/monitors.py; "": it stays in its own. What isn't permitted is
    left undone.
    """
    with contextlib.suppress(OSError):  # needs CAP_SYS_RESOURCE
        Path(f"/proc/{pid}/oom_score_adj").write_text("-1000")
    if cgroup:
        with contextlib.suppress(OSError):
            Path(cgroup).write_text(str(pid))
