"""Where exceptions meet exit codes: this table, and nowhere else. docs/exit-codes.md says the same to people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from images import errors as images
from runtime import errors as runtime
from runtime.criu.failures import CriuFault
from transport import errors as transport

OK = 0
FAILED = 1
USAGE = 2
"""click's own, for a command line that makes no sense."""

# The first class that fits counts.
CODES: tuple[tuple[type[Exception], int], ...] = (
    (CriuFault, 20),
    (transport.UnknownHost, 30),
    (transport.HostKeyChanged, 31),
    (transport.AuthRefused, 32),
    (transport.Unreachable, 33),
    (transport.RemoteMissing, 34),
    (transport.VersionMismatch, 35),
    (transport.LinkLost, 36),
    (transport.PeerFault, 37),
    (transport.ProtocolFault, 38),
    (transport.TimedOut, 14),
    (transport.TransportFault, 39),
    (images.WrongVersion, 22),
    (images.Corrupt, 21),
    (images.Truncated, 21),
    (images.NoSpace, 15),
    (images.NotFound, 10),
    (images.Conflict, 11),
    (images.BadInput, 3),
    (images.ImageFault, 23),
    (runtime.BadInput, 3),
    (runtime.NotFound, 10),
    (runtime.Conflict, 11),
    (runtime.WrongState, 12),
    (runtime.Unsupported, 13),
    (runtime.TimedOut, 14),
    (runtime.NotPermitted, 16),
    (runtime.RuntimeFault, FAILED),
)
INTERRUPTED = 130


def exit_code(fault: BaseException) -> int:
    for kind, code in CODES:
        if isinstance(fault, kind):
            return code
    return FAILED


def describe(fault: BaseException) -> dict[str, Any]:
    """A fault for machines."""
    return {
        "error": type(fault).__name__,
        "doing": getattr(fault, "doing", ""),
        "target": getattr(fault, "target", ""),
        "why": getattr(fault, "why", str(fault)),
        "hint": getattr(fault, "hint", ""),
        "retry": bool(getattr(fault, "retry", False)),
        "lines": list(getattr(fault, "lines", ())),
        "log": getattr(fault, "log", ""),
        "exit_code": exit_code(fault),
    }


def report(fault: BaseException, *, as_json: bool) -> None:
    """Say it once, on stderr: one line, then CRIU's own lines where there are some."""
    if as_json:
        click.echo(json.dumps(describe(fault)), err=True)
        return
    click.echo(f"ckpt: {fault}", err=True)
    for line in getattr(fault, "lines", ()):
        click.echo(f"    {line}", err=True)
    if getattr(fault, "log", ""):
        click.echo(f"  the whole log: {fault.log}", err=True)  # type: ignore[attr-defined]
    if getattr(fault, "retry", False):
        click.echo("  trying again makes sense", err=True)


FAULTS = (runtime.RuntimeFault, images.ImageFault, transport.TransportFault)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Around every command: faults become one line and their exit code; anything else is a bug and shows itself."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        as_json = bool(kwargs.get("as_json"))
        try:
            return command(*args, **kwargs)
        except FAULTS as fault:
            report(fault, as_json=as_json)
            sys.exit(exit_code(fault))
        except KeyboardInterrupt:
            click.echo("ckpt: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(141)

    return run
