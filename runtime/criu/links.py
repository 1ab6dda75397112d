"""The temporary names that CRIU gives to open files whose own name is gone (`link_remap.N`, criu/files-reg.c).

A dump that leaves the tasks running removes them, and so does the restore. After a dump that kills, they stay in the
upper directory of the container that is left behind, where a later start would find them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"link_remap\.\d+")


def remove(upper: Path) -> None:
    """Remove them below UPPER. Only second names: nothing is lost with them."""
    for directory, _, names in os.walk(upper):
        for name in filter(_NAME.fullmatch, names):
            path = os.path.join(directory, name)
            if os.lstat(path).st_nlink > 1:
                os.unlink(path)
