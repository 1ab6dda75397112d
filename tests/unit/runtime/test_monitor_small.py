"""The monitor stays small: it is there once per container, for as long as that lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
# Each costs half a megabyte or more, or pulls in what does.
LARGE = {
    "typing",
    "dataclasses",
    "inspect",
    "logging",
    "pathlib",
    "subprocess",
    "threading",
    "asyncio",
    "tempfile",
}


def test_the_monitor_imports_nothing_large_and_nothing_of_others() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r}); import runtime.monitor.monitor;"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not LARGE & loaded
    ours = {name.partition(".")[0] for name in loaded if name in sys.modules or "." in name}
    assert not {"click", "msgpack", "pyroute2", "ckpt", "images", "transport"} & ours
    assert "runtime.errors" not in loaded  # the family of faults is for those who talk to people
