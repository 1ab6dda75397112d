"""Running the project's own tests in a guest.

pytest runs there without a session: a guest that was paused, or an SSH connection that was lost, costs nothing, and its
output comes here as it's written.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from tests.vm.guest import Guest
from tests.vm.installed import HOME

_PLUGIN = Path(__file__).with_name("told_at_once.py")
LOG = "/root/ckpt-test.log"
_STATUS = "/root/ckpt-test.status"
_SILENCE = 3600
"""Seconds without a word after which a guest is given up: no test's own limit is as long."""
SLOWNESS = 10
"""A guest is about that many times slower than this machine, for which tests' own limits are meant."""


def _command(words: tuple[str, ...]) -> str:
    # /tmp is in memory on Debian 13; some tests look at what a disk does.
    options = f"-p no:cacheprovider --timeout={120 * SLOWNESS} --basetemp=/var/tmp/pytest -p {_PLUGIN.stem}"
    start = f"CKPT_TEST_SLOWNESS={SLOWNESS} .venv/bin/python -m pytest {options}"
    return f"cd {HOME} && {start} {shlex.join(words)}"


def run_tests(guest: Guest, *words: str) -> str:
    """pytest's last line; the whole output stays in the guest in LOG. Raises AssertionError with its end."""
    with tempfile.NamedTemporaryFile(prefix="ckpt-vm-", dir="/var/tmp") as file:
        status = Detached(guest, words, Path(file.name)).wait()
        said = Path(file.name).read_text(errors="replace").splitlines()
    # 5: nothing collected, which would prove nothing.
    assert status == 0, "\n".join(said[-60:])
    return said[-1]


class Detached:
    """pytest with WORDS in GUEST, its output in TARGET here."""

    def __init__(self, guest: Guest, words: tuple[str, ...], target: Path) -> None:
        self._guest = guest
        self._target = target
        target.write_bytes(b"")
        guest.put(f"{HOME}/{_PLUGIN.name}", _PLUGIN.read_text())
        line = f"rm -f {_STATUS}; : >{LOG}; ({_command(words)}) >{LOG} 2>&1; echo $? >{_STATUS}"
        guest.run(f"setsid sh -c {shlex.quote(line)} </dev/null >/dev/null 2>&1 &")

    def wait(self) -> int | None:
        """pytest's exit status; None if nothing was heard of it for a long time, or the guest went off."""
        heard = time.monotonic()
        while True:
            status = self._status()
            if self._fetch():
                heard = time.monotonic()
            if status is not None:
                return status
            if time.monotonic() > heard + _SILENCE or self._guest.pid() is None:
                return None
            time.sleep(5)

    def _status(self) -> int | None:
        return int(said) if (said := self._ask(f"cat {_STATUS} 2>/dev/null")) else None

    def _fetch(self) -> bool:
        """Whether there was more output."""
        have = self._target.stat().st_size
        more = self._ask(f"tail -c +{have + 1} {LOG}")
        with self._target.open("ab") as target:
            target.write(more)
        return more != b""

    def _ask(self, line: str) -> bytes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return bytes(self._guest.run(line, check=False, text=False, timeout=120).stdout)
        return b""
