"""QEMU's control socket (docs/interop/qmp-spec): one command at a time, events are skipped."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command."""


def command(path: Path, name: str, **arguments: Any) -> Any:
    """Execute NAME; returns its "return". Raises QmpError, OSError when nobody listens or answers."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        with sock.makefile("rwb") as stream:
            json.loads(stream.readline())  # the greeting
            _call(stream, "qmp_capabilities", {})
            return _call(stream, name, arguments)


def _call(stream: Any, name: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise QmpError(f"{name}: {answer['error']['desc']}")
        if "return" in answer:
            return answer["return"]
    raise ConnectionResetError(f"{name}: QEMU closed its socket")
