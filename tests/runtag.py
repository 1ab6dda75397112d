"""The name of this test run, carried by everything that the run makes.

Other runs may be busy on the same machine, and an aborted one may have left things behind. The tag
names its owner's process id, so that anybody can tell whether the owner still lives: `t1234` in
directory names (/tmp/ckpt-t1234-...), names of network namespaces and containers, and as
CKPT_TEST_RUN in the environment of each process that the tests start.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

VARIABLE = "CKPT_TEST_RUN"
TAG = f"t{os.getpid()}"
_PATTERN = re.compile(r"(?<![A-Za-z0-9])t([0-9]+)(?![0-9A-Za-z])")


def tags_in(text: str) -> set[str]:
    """Every run's tag that occurs in a name or a path."""
    return {found[0] for found in _PATTERN.finditer(text)}


def carries(text: str, tag: str = TAG) -> bool:
    """Whether a name or a path belongs to the run `tag`."""
    return tag in tags_in(text)


def is_alive(tag: str) -> bool:
    """Whether the run's owner still lives. A reused process id counts only if it's pytest again.

    The owner is pytest, or a worker of `pytest -n`, whose command line doesn't say so: its parent's does.
    """
    owner = Path("/proc", tag.removeprefix("t"))
    try:
        parent = (owner / "stat").read_text().rpartition(")")[2].split()[1]
        commands = [(owner / "cmdline").read_bytes(), Path("/proc", parent, "cmdline").read_bytes()]
    except OSError:
        return False
    return any(b"pytest" in command for command in commands)
