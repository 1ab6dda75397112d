"""The checking workload (`inside/`) in a container of a lab's host: started, and asked what survived."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

from tests.lab import Host, rootfs
from tests.patience import patient

INSIDE = Path(__file__).parent / "inside"
NAME = "survivor"


def claims() -> list[str]:
    """The names of all claims, read from the source: its modules only run inside the container."""
    found = []
    for path in sorted(INSIDE.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(mark, ast.Name) and mark.id == "claim" for mark in node.decorator_list
            ):
                found.append(node.name)
    return found


def make_rootfs(directory: Path) -> Path:
    files = {f"/survive/{path.name}": path for path in INSIDE.glob("*.py")}
    lower = {f"/survive/{name}": name for name in ("lower", "lower-removed", "lower-changed")}
    return rootfs.python(directory, files={**files, **lower})


def wait_for_output(host: Host, name: str, text: str, seconds: float = 120) -> None:
    """Until TEXT is in the container's log. Raises AssertionError if it ends before."""
    until = time.monotonic() + patient(seconds)
    while text not in (log := host.ckpt("logs", name)):
        state = inspect(host, name)["state"]
        assert state == "running", f"{name} is {state}: {log}"
        assert time.monotonic() < until, f"{name} says only: {log}"
        time.sleep(0.1)


def inspect(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.ckpt("inspect", name))
    return found


def start(host: Host, tree: Path, *options: str) -> None:
    """Start every claim's process."""
    command = ["python3", "-u", "-B", "/survive/conductor.py", "run"]
    options = ("-d", "--name", NAME, "--tmpfs", "/scratch", "-e", "SURVIVE=1", *options)
    host.ckpt("run", *options, str(tree), "--", *command)
    wait_for_output(host, NAME, "READY")


def check(host: Host) -> dict[str, str]:
    """What is wrong, by claim; "" for nothing."""
    said = host.ckpt("exec", NAME, "--", "python3", "-B", "/survive/conductor.py", "check")
    report: dict[str, str] = json.loads(said)
    return report


def cycle(host: Host, checkpoint: str) -> dict[str, str]:
    """Dump it, restore it, and look."""
    host.ckpt("dump", NAME, "--as", checkpoint)
    host.ckpt("rm", NAME)
    host.ckpt("restore", checkpoint, "--as", NAME)
    return check(host)
