"""The one door to external programs: argument lists, never a shell; the command is logged so that it can be pasted."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Sequence

from runtime.errors import NotFound, SystemFault, TimedOut

log = logging.getLogger(__name__)


def run(
    argv: Sequence[str],
    *,
    what: str,
    stdin: bytes | None = None,
    timeout: float = 60.0,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run ARGV to its end and return it with its output captured.

    WHAT says what is being done, for the error. TIMEOUT is in seconds.
    Raises NotFound (no such program), TimedOut, SystemFault (exit status other than 0, if CHECK).
    """
    log.debug("run: %s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            pass_fds=pass_fds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise NotFound(
            doing=what, target=argv[0], why="the program is not installed", hint="ckpt doctor"
        ) from None
    except subprocess.TimeoutExpired:
        raise TimedOut(
            doing=what, target=argv[0], why=f"no end after {timeout:g} s", retry=True
        ) from None
    if check and done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit status {done.returncode}"
        raise SystemFault(doing=what, target=shlex.join(argv[:4]), why=why)
    return done
