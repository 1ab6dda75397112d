"""A real OpenSSH sshd on loopback: own port, own keys, own configuration, in one directory."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.patience import patient
from transport.ssh_settings import ConfigFiles

REPO = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def keygen(path: Path, kind: str = "ed25519", phrase: str = "") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", phrase, "-C", "ckpt-test", "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


class Sshd:
    """Started when made; ``stop()`` it.  ``sessions()`` are the processes of its connections."""

    def __init__(self, folder: Path, client_key: Path, kinds: tuple[str, ...] = ("ed25519",)):
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True)
        self.host_keys = [keygen(folder / f"host_{kind}", kind) for kind in kinds]
        authorized = folder / "authorized_keys"
        authorized.write_text(Path(f"{client_key}.pub").read_text())
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        config = folder / "sshd_config"
        config.write_text(
            "".join(f"HostKey {key}\n" for key in self.host_keys) + f"Port {self.port}\n"
            "ListenAddress 127.0.0.1\n"
            f"AuthorizedKeysFile {authorized}\n"
            "PidFile none\nUsePAM no\nSetEnv SHLVL=1\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nAllowTcpForwarding yes\n"
            "LogLevel ERROR\nMaxStartups 100\nMaxSessions 100\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        self.log = open(folder / "log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=self.log
        )
        self._await()

    def _await(self) -> None:
        """Until it listens and has nobody else to serve: its title tells, and the leak check
        compares titles."""
        deadline = time.monotonic() + patient(10)
        while b"[listener] 0 of" not in Path(f"/proc/{self.process.pid}/cmdline").read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = (self.folder / "log").read_text()
                raise RuntimeError(f"sshd did not start: {words}")
            time.sleep(0.02)

    def known_hosts_lines(self, name: str | None = None) -> str:
        name = name or f"[127.0.0.1]:{self.port}"
        return "".join(f"{name} {Path(f'{key}.pub').read_text()}" for key in self.host_keys)

    def sessions(self) -> list[int]:
        return descendants(self.process.pid)

    def kill_sessions(self, how: int = signal.SIGKILL) -> None:
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def stop(self) -> None:
        ours = self.sessions()
        self.process.kill()
        self.process.wait()
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.log.close()


class Lab:
    """An sshd and a client's files that know it.  ``files`` is for ``transport.ssh.connect``."""

    def __init__(self, folder: Path, kinds: tuple[str, ...] = ("ed25519",)) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        self.user = getpass.getuser()
        self.key = keygen(folder / "client_key")
        self.sshd = Sshd(folder / "sshd", self.key, kinds)
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(self.sshd.known_hosts_lines())
        self.config = folder / "ssh_config"
        self.write_config()
        self.files = ConfigFiles(self.config, self.known_hosts)

    def write_config(self, extra: str = "", hosts: str = "") -> None:
        self.config.write_text(
            f"{hosts}\n"
            f"Host lab\n  HostName 127.0.0.1\n  Port {self.sshd.port}\n  {extra}\n"
            f"Host *\n  User {self.user}\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
        )

    def lane_argv(self, token: str, path: Path) -> list[str]:
        program = REPO / "tests" / "contract" / "lane_process.py"
        return ["env", f"PYTHONPATH={REPO}", sys.executable, str(program), token, str(path)]

    def close(self) -> None:
        self.sshd.stop()


@contextlib.contextmanager
def lab(folder: Path, kinds: tuple[str, ...] = ("ed25519",)) -> Iterator[Lab]:
    made = Lab(folder, kinds)
    try:
        yield made
    finally:
        made.close()
