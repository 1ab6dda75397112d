"""This machine as a third host on the guests' wire, at its near end: a ckpt root and an sshd of its own.

What differs from a guest: a kernel, a processor and a cgroup layout that nobody chose for the lab. It answers to the
same few calls as a Guest, so whoever moves containers need not know which of the two a host is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime import cgroups
from tests import sweep
from tests.lab.login import Login
from tests.vm.image import keys
from tests.vm.segment import Segment
from tests.vm.settings import REPO, SUBNET

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Near:
    """Started by `up`, ended by `close`; everything below DIRECTORY, which must not be there yet."""

    name = "near"
    address = f"{SUBNET}.1"

    def __init__(self, segment: Segment, directory: Path) -> None:
        self.segment = segment
        self.directory = directory
        self.root = directory / "root"
        self.rootfs = str(directory / "rootfs")
        self._login = _OneKey(directory / "ssh")
        self._pip: dict[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """Of everything here; nothing of the user's own SSH."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
            "CKPT_ROOT": str(self.root),
            "CKPT_SSH_CONFIG": str(self._login.config),
            "CKPT_KNOWN_HOSTS": str(self._login.known_hosts),
            **self._pip,
        }

    def fetch_from(self, wheels: Path) -> None:
        """No way leads from the wire to a registry: pip takes what is in WHEELS."""
        self._pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}

    def up(self, *, serve: bool = True) -> None:
        """SERVE: an sshd, too, and something to run."""
        self.directory.mkdir(parents=True, mode=0o711)
        self.root.mkdir(mode=0o711)
        self._login.make_for(self.address)
        if not serve:
            return
        self._server = self._login.serve("near", self.segment.namespace, self.environment())
        programs = Path(self.rootfs, "bin")
        programs.mkdir(parents=True)
        source = REPO / "tests/e2e/migrate/ticker.c"
        compile_it = ["cc", "-O2", "-static", "-o", str(programs / "ticker"), str(source)]
        subprocess.run(compile_it, check=True)

    def close(self) -> None:
        if (self.root / "containers").is_dir():
            self.run("ckpt ps -aq | xargs -r ckpt rm -f", check=False)
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait()
        if self.directory.exists():
            sweep.clear(self.directory)
        cgroups.remove_monitors(cgroups.detect())

    def run(
        self, *command: str, check: bool = True, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """As a guest's."""
        words = ["sh", "-c", command[0]] if len(command) == 1 else list(command)
        options = {"capture_output": True, "text": True, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("CKPT_", "SSH_"))}
        env = {**mine, **self.environment()}
        done = subprocess.run(self.segment.argv(*words), timeout=timeout, env=env, **options)
        if check and done.returncode:
            error = subprocess.CalledProcessError(
                done.returncode, list(command), done.stdout, done.stderr
            )
            error.add_note(f"at the near end: {done.stdout}{done.stderr}"[-6000:])
            raise error
        return done

    def text(self, *command: str, **options: Any) -> str:
        return str(self.run(*command, **options).stdout).strip()


class _OneKey(Login):
    """The lab's SSH with the guests' client key and host key, so that guests are let in, and known."""

    def make_for(self, address: str) -> None:
        self.directory.mkdir(mode=0o700)
        (self.directory / "near").mkdir(mode=0o700)
        source = keys()
        for name, place in (
            ("client", self.client_key),
            ("host", self.directory / "near/host_key"),
        ):
            shutil.copy(source / name, place)
            place.chmod(0o600)
            shutil.copy(source / f"{name}.pub", place.with_suffix(".pub"))
        shutil.copy(source / "known_hosts", self.known_hosts)
        self.config.write_text(
            f"Host *\n    User root\n    IdentityFile {self.client_key}\n    IdentitiesOnly yes\n"
            "    IdentityAgent none\n    BatchMode yes\n"
        )
