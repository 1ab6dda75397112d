"""SSH between the lab's hosts: real sshd, keys, known hosts, client configuration.

All lies in the lab's directory. Nothing of the user's own (~/.ssh, agent, /etc/ssh) is read or
written. The one trace outside is sshd's privilege separation directory /run/sshd, an empty
directory which is made if it is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab.topology import LabError, tool
from tests.patience import patient

_PRIVILEGE_SEPARATION = Path("/run/sshd")
_SECONDS = patient(10)


class Login:
    """The files below DIRECTORY: client key and config for all, a directory per host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.known_hosts = directory / "known_hosts"
        self.client_key = directory / "client"

    def make(self, hosts: Mapping[str, tuple[str, str]]) -> None:
        """Keys and the client's files for HOSTS (name: its addresses)."""
        self.directory.mkdir(mode=0o700)
        _keygen(self.client_key)
        known, config = [], []
        for name, addresses in hosts.items():
            (self.directory / name).mkdir(mode=0o700)
            key = self.directory / name / "host_key"
            _keygen(key)
            kind, public = key.with_suffix(".pub").read_text().split()[:2]
            known.append(f"{','.join([name, *addresses])} {kind} {public}")
            config.append(f"Host {name}\n    HostName {addresses[0]}\n")
        self.known_hosts.write_text("\n".join(known) + "\n")
        common = {
            "User": "root",
            "IdentityFile": self.client_key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        config.append("Host *\n" + "".join(f"    {k} {v}\n" for k, v in common.items()))
        self.config.write_text("\n".join(config))

    def serve(
        self, name: str, namespace: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start NAME's sshd in NAMESPACE and wait until it listens.

        What runs over it sees ENVIRONMENT.
        """
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")
        if sshd is None:
            raise LabError("sshd isn't installed: apt install openssh-server")
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        place = self.directory / name
        config, log = place / "sshd_config", place / "log"
        config.write_text(self._sshd_config(place, environment))
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net={namespace}", sshd, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the terminal is for the lab's owner
            )
        deadline = time.monotonic() + _SECONDS
        while "Server listening on 0.0.0.0" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise LabError(f"sshd of {name} doesn't start: {log.read_text()[-500:]}")
            time.sleep(0.01)
        return process

    def _sshd_config(self, place: Path, environment: Mapping[str, str]) -> str:
        # sshd takes the first of several SetEnv lines only. bash reads the user's start-up files when it is the first
        # shell below sshd: what they do on this machine (and how long it takes) is no business of the lab's hosts.
        settings_of_all = {**environment, "SHLVL": "1"}
        variables = " ".join(f'"{key}={value}"' for key, value in settings_of_all.items())
        settings = {
            "Port": "22",
            "ListenAddress": "0.0.0.0\nListenAddress ::",
            "HostKey": place / "host_key",
            "PidFile": place / "pid",
            "AuthorizedKeysFile": self.client_key.with_suffix(".pub"),
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            # Without PAM sshd refuses a locked account ("!" in shadow(5)) even with a key.
            "UsePAM": "yes" if _root_is_locked() else "no",
            "StrictModes": "no",  # /tmp is writable for all
            "UseDNS": "no",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "LogLevel": "VERBOSE",
            "MaxStartups": "100",
            "MaxSessions": "100",
            "Subsystem": "sftp internal-sftp",
            "SetEnv": variables,
        }
        return "".join(f"{key} {value}\n" for key, value in settings.items())


def _root_is_locked() -> bool:
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("root:!") for line in lines)


def _keygen(path: Path) -> None:
    tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ckpt-lab", "-f", str(path))
