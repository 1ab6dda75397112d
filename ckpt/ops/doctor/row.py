"""One line of the doctor's table, and how a probe becomes one."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

Level = Literal["ok", "warn", "bad"]
LEVELS: tuple[str, ...] = get_args(Level)
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """What a host can do in one respect.

    LEVEL "bad" means that containers can't be run, dumped or restored; "warn" that they can, but something doesn't
    work or is slower. CONSEQUENCE says what, FIX what to do about it. REPAIR names the cure that `--fix` knows.
    """

    name: str
    value: str
    level: Level = "ok"
    consequence: str = ""
    fix: str = ""
    repair: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def row_from(raw: Any) -> Row:
    """A row that another host sent. Raises ValueError: nothing of what it says is taken on trust."""
    fields = Row.__slots__
    if not isinstance(raw, dict) or set(raw) != set(fields):
        raise ValueError("not a row")
    if not all(isinstance(raw[name], str) and len(raw[name]) <= _LONGEST for name in fields):
        raise ValueError("a field of a row isn't a text of a reasonable length")
    if raw["level"] not in LEVELS:
        raise ValueError(f"{raw['level']!r} is no level")
    # It goes to a terminal: no control characters, so no escape sequences either.
    clean = {name: "".join(c for c in raw[name] if c.isprintable()) for name in fields}
    level: Level = raw["level"]
    del clean["level"]
    return Row(level=level, **clean)


Probe = Callable[[], Row]


def asked(name: str, probe: Probe) -> Row:
    """PROBE's row; a probe that fails in an unforeseen way is a row, too, and hides no other."""
    try:
        return probe()
    except (OSError, RuntimeFault, ValueError, ImportError) as error:
        log.debug("probe %s", name, exc_info=True)
        return Row(name, "unknown", "warn", f"it couldn't be found out: {reason(error)}")


def reason(error: BaseException) -> str:
    if isinstance(error, RuntimeFault):
        return error.why
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def in_child(action: Callable[[], object]) -> str:
    """Why ACTION fails in a child of its own, with which namespaces and mounts go away; "" when it succeeds."""
    # Through a file that has no name: a pipe would be held open by whoever ACTION leaves behind.
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads. The child takes no lock of Python's: system calls, one exec.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                action()
            except BaseException as error:
                os.write(said.fileno(), reason(error).encode()[:1000])
            finally:
                os._exit(0)
        status = os.waitpid(pid, 0)[1]
        said.seek(0)
        text = said.read().decode(errors="replace")
    return text or (f"its child ended with status {status}" if status else "")
