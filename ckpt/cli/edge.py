"""Where exceptions meet exit codes: this table, and nowhere else. docs/exit-codes.md says the same to people."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ckpt.ops.interrupt import Interrupted
from images import errors as images
from runtime import errors as runtime
from runtime.criu.failures import CriuFault
from transport import errors as transport

OK = 0
FAILED = 1
USAGE = 2
"""click's own, for a command line that makes no sense."""

CORRUPT = 21

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
    (images.Corrupt, CORRUPT),
    (images.Truncated, CORRUPT),
    (images.NoSpace, 15),
    (images.NotFound, 10),
    (images.Conflict, 11),
    (images.BadInput, 3),
    (images.ImageFault, 23),
    (runtime.BadInput, 3),
    (runtime.NotFound, 10),
    (runtime.Conflict, 11),
    (runtime.CommandNotFound, 127),
    (runtime.NotExecutable, 126),
    (runtime.WrongState, 12),
    (runtime.Unsupported, 13),
    (runtime.TimedOut, 14),
    (runtime.NotPermitted, 16),
    (runtime.RuntimeFault, FAILED),
)
BUG = 70
"""An exception that nobody foresaw (EX_SOFTWARE of sysexits(3))."""
SIGNALLED = 128
"""Plus the signal's number, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM, 141 after a broken pipe."""

_NO_SPACE = 15
_NOT_PERMITTED = 16
_OF_ERRNO = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EPERM: _NOT_PERMITTED,
    errno.EACCES: _NOT_PERMITTED,
}


def exit_code(fault: BaseException) -> int:
    for kind, code in CODES:
        if isinstance(fault, kind):
            if code == FAILED and _full(fault):
                return _NO_SPACE
            return code
    if isinstance(fault, OSError):
        return _OF_ERRNO.get(fault.errno or 0, FAILED)
    return BUG


def _full(fault: BaseException) -> bool:
    """Whether a disk's being full is behind a fault that has no kind of its own for it."""
    cause = fault.__cause__ or fault.__context__
    return isinstance(cause, OSError) and _OF_ERRNO.get(cause.errno or 0) == _NO_SPACE


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
        "log_host": getattr(fault, "host", ""),
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
        host = getattr(fault, "host", "")
        where = f" on {host}" if host else ""
        click.echo(f"  the whole log: {fault.log}{where}", err=True)  # type: ignore[attr-defined]
    if getattr(fault, "retry", False):
        click.echo("  trying again makes sense", err=True)


FAULTS = (runtime.RuntimeFault, images.ImageFault, transport.TransportFault)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Around every command: whatever goes wrong becomes one line and an exit code, here and nowhere else."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise  # click's own ways to end
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            sys.exit(conclude(error, as_json=bool(kwargs.get("as_json"))))

    return run


def conclude(error: BaseException, *, as_json: bool = False) -> int:
    """Say what ERROR means; returns the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_gone():
        _silence()
        return SIGNALLED + signal.SIGPIPE
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        click.echo("ckpt: interrupted", err=True)
        return SIGNALLED + number
    with contextlib.suppress(BrokenPipeError):  # nobody listens: the exit code still tells
        if isinstance(error, FAULTS):
            report(error, as_json=as_json)
        elif isinstance(error, OSError):
            report(_system_fault(error), as_json=as_json)
        else:
            _report_bug(error, as_json=as_json)
        if _verbose():
            traceback.print_exception(error, file=sys.stderr)
    return exit_code(error)


def _system_fault(error: OSError) -> runtime.SystemFault:
    """An operating system's error that came through unexplained; which file it is about is often all one needs."""
    target = str(error.filename) if error.filename else "a system call"
    hint = "free some space" if _OF_ERRNO.get(error.errno or 0) == _NO_SPACE else ""
    return runtime.SystemFault(
        doing="using", target=target, why=error.strerror or str(error), hint=hint
    )


def _report_bug(error: BaseException, *, as_json: bool) -> None:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if as_json:
        click.echo(json.dumps({**describe(error), "why": text, "bug": True}), err=True)
        return
    hint = "" if _verbose() else " (ckpt -v shows where)"
    click.echo(f"ckpt: this is a bug in ckpt: {text}{hint}", err=True)


def _verbose() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("verbose"))


def _reader_gone() -> bool:
    """Whether nobody reads our standard output any more (poll(2): POLLERR on the writing end of a pipe)."""
    poll = select.poll()
    try:
        poll.register(1, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except OSError:
        return False


def _silence() -> None:
    """Python flushes standard output at its end and would complain of the broken pipe once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
