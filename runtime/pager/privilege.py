"""vm.unprivileged_userfaultfd, while a restore into a user namespace needs it.

CRIU's restorer opens its userfaultfd without USER_MODE_ONLY and as a user of the container's namespace, which this
sysctl has to allow (only the opening; what is open stays). The sysctl is the host's, and several restores may need it
at once. So there is one file with the value found first and who needs it, changed under a lock; the last one out
writes the value back. A holder that died, known by process id and start time, is nobody: whoever comes next, or
recover(), puts things right.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import from_os_error
from runtime.proc import boot_ticks

SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
LEDGER = Path("/run/ckpt-unprivileged-userfaultfd")
"""One for the host, whatever CKPT_ROOT says: so is the sysctl."""


@contextlib.contextmanager
def allowed(*, ledger: Path = LEDGER, sysctl: Path = SYSCTL) -> Iterator[None]:
    """Inside, tasks in user namespaces may open userfaultfds. Raises NotPermitted, or another RuntimeFault."""
    me = _identity(os.getpid())
    try:
        with _locked(ledger) as state:
            if state["value"] is None:
                state["value"] = sysctl.read_text().strip()
            state["holders"].append(me)
            state.save()
            sysctl.write_text("1")
    except OSError as error:
        with contextlib.suppress(OSError):
            _leave(me, ledger, sysctl)
        raise from_os_error(
            error, doing="setting", target="vm.unprivileged_userfaultfd",
            hint="a restore without --lazy-pages needs none",
        ) from error  # fmt: skip
    try:
        yield
    finally:
        _leave(me, ledger, sysctl)


def recover(*, ledger: Path = LEDGER, sysctl: Path = SYSCTL) -> bool:
    """Put back what holders left that were killed. True if there was something to put back."""
    if not ledger.exists():
        return False
    with _locked(ledger) as state:
        return _restore_if_free(state, sysctl)


def _leave(me: str, ledger: Path, sysctl: Path) -> None:
    with _locked(ledger) as state:
        if me in state["holders"]:
            state["holders"].remove(me)
        _restore_if_free(state, sysctl)


def _restore_if_free(state: _State, sysctl: Path) -> bool:
    if state["holders"] or state["value"] is None:
        state.save()
        return False
    sysctl.write_text(state["value"])
    state.remove()
    return True


class _State(dict[str, Any]):
    """value: what was found, None while nobody holds it; holders: living ones, some perhaps several times."""

    def __init__(self, fd: int, path: Path) -> None:
        try:
            content = json.loads(os.pread(fd, 1 << 20, 0) or b"{}")
        except ValueError:
            content = {}  # written by halves when the host went down; then the sysctl is the boot's again
        super().__init__(value=content.get("value"), holders=[])
        self["holders"] = [holder for holder in content.get("holders", []) if is_alive(holder)]
        self._fd = fd
        self._path = path

    def save(self) -> None:
        raw = json.dumps(self).encode()
        os.pwrite(self._fd, raw, 0)
        os.ftruncate(self._fd, len(raw))

    def remove(self) -> None:
        os.unlink(self._path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[_State]:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The last holder removes the file: what we locked may not be the file any more.
            try:
                current = os.stat(path).st_ino == os.fstat(fd).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield _State(fd, path)
                return
        finally:
            os.close(fd)


def _identity(pid: int) -> str:
    """Process id and start time: together they are never used again."""
    return f"{pid}:{boot_ticks(pid)}"


def is_alive(identity: str) -> bool:
    """Whether that holder, as the ledger names it, still runs."""
    try:
        return _identity(int(identity.partition(":")[0])) == identity
    except (OSError, ValueError, IndexError):
        return False
