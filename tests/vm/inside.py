"""Running the project's own tests in a guest."""

from __future__ import annotations

from tests.vm.guest import Guest
from tests.vm.installed import HOME

LOG = "/root/ckpt-test.log"


def run_tests(guest: Guest, *paths: str, seconds: float = 1200) -> str:
    """pytest's last line; the whole output stays in the guest in LOG. Raises AssertionError with its end."""
    # /tmp is in memory on Debian 13; some tests look at what a disk does.
    # A guest is ten times slower than this machine, and a test's own limit is meant for the latter.
    options = "-p no:cacheprovider --timeout=600 --basetemp=/var/tmp/pytest"
    options = "-p no:cacheprovider --timeout=600 --basetemp=/var/tmp/pytest"
    command = f"cd {HOME} && .venv/bin/python -m pytest {options} {' '.join(paths)}"
    done = guest.run(f"{command} >{LOG} 2>&1; echo $?", timeout=seconds)
    said = guest.text("tail", "-n", "60", LOG)
    # 5: nothing collected, which would prove nothing.
    assert done.stdout.strip() == "0", said
    return said.splitlines()[-1]
