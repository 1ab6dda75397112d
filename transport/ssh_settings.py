"""What OpenSSH would do for a host, asked of OpenSSH itself.

``~/.ssh/config`` is a language: Include, Match, patterns, tokens, first value wins.  Rather than
to read it a second time and differently, we write a short configuration that forces what we need
(strict host keys, no prompts, no forwardings, no compression), includes the user's files below
it, and let ``ssh -G`` tell the result.  paramiko follows that result, and the OpenSSH lane runs
``ssh`` with that same file: so both go to the same place, by the same keys.  A file is needed
instead of options because ``ssh`` hands ``-F``, but no ``-o``, to the ``ssh`` of a ProxyJump.

Sources: ssh(1), ssh_config(5).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transport.errors import TransportFault, Unreachable, one_line
from transport.target import Target

# A path of its own, and not $HOME: OpenSSH takes the home directory from the user data base too.
_HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)

_FORCED = """\
Host *
  BatchMode yes
  StrictHostKeyChecking yes
  UpdateHostKeys no
  CheckHostIP no
  VerifyHostKeyDNS no
  NumberOfPasswordPrompts 0
  Compression no
  Ciphers ^aes128-gcm@openssh.com
  ControlMaster no
  ControlPath none
  ClearAllForwardings yes
  ForwardAgent no
  ForwardX11 no
  Tunnel no
  PermitLocalCommand no
  RemoteCommand none
  SessionType default
  RequestTTY no
  EscapeChar none
  ForkAfterAuthentication no
  StdinNull no
  LogLevel ERROR
"""
# The first value that is found counts: these hold where the user's files say nothing.
_FALLBACK = """\
Host *
  ConnectTimeout 20
  ServerAliveInterval 5
  ServerAliveCountMax 3
"""


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """Which files to read; the defaults are OpenSSH's own.

    ``config`` replaces ~/.ssh/config and /etc/ssh/ssh_config; ``known_hosts`` replaces every
    known_hosts file.  CKPT_SSH_CONFIG and CKPT_KNOWN_HOSTS say the same from outside.
    ``more_known`` is one more known_hosts file besides whichever count; it may be missing.
    """

    config: Path | None = None
    known_hosts: Path | None = None
    more_known: Path | None = None

    @staticmethod
    def from_environment(env: Mapping[str, str] = os.environ) -> ConfigFiles:
        config, known = env.get("CKPT_SSH_CONFIG"), env.get("CKPT_KNOWN_HOSTS")
        return ConfigFiles(Path(config) if config else None, Path(known) if known else None)


@dataclass(frozen=True, slots=True)
class Settings:
    """The result for one host."""

    alias: str
    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...]
    identities_only: bool
    identity_agent: str | None  # path, "none", or None for $SSH_AUTH_SOCK
    known_hosts: tuple[str, ...]
    host_key_alias: str | None
    proxy_command: str | None
    proxy_jump: tuple[str, ...]
    connect_timeout: float
    alive_interval: float
    alive_count: int
    address_family: str  # "any", "inet", "inet6"
    bind_address: str | None


class SshConfig:
    """The configuration that we wrote.  ``close()`` it, and keep it open while an ssh uses it.

    It lies in memory, and ssh programs read it through our /proc entry: so nothing is left on a
    disk, however we end.
    """

    def __init__(self, files: ConfigFiles) -> None:
        self._more_known = files.more_known
        text = _compose(files).encode()
        self._fd = os.memfd_create("ckpt-ssh-config", os.MFD_CLOEXEC)
        os.write(self._fd, text)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        self._ssh = shutil.which("ssh")

    def argv(self, target: Target) -> list[str]:
        """An ``ssh`` command line up to and including the host; raises TransportFault."""
        if self._ssh is None:
            raise TransportFault(
                doing="looking for",
                target="the OpenSSH client",
                why="no program 'ssh' in PATH",
                hint="apt install openssh-client",
            )
        argv = [self._ssh, "-F", str(self.path)]
        if target.port is not None:
            argv += ["-p", str(target.port)]
        if target.user is not None:
            argv += ["-l", target.user]
        return [*argv, "--", target.host]

    def settings(self, target: Target) -> Settings:
        """What OpenSSH would do for ``target``.  Raises TransportFault, Unreachable."""
        argv = self.argv(target)
        argv.insert(1, "-G")
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode != 0:
            raise Unreachable(
                doing="reading the SSH configuration for",
                target=str(target),
                why=one_line(done.stderr) or f"ssh -G ended with {done.returncode}",
            )
        settings = _settings(target, done.stdout)
        if self._more_known is not None:
            known = (*settings.known_hosts, str(self._more_known))
            return replace(settings, known_hosts=known)
        return settings

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _compose(files: ConfigFiles) -> str:
    text = _FORCED
    if files.known_hosts is not None:
        text += f"  UserKnownHostsFile {_quoted(files.known_hosts)}\n"
        text += "  GlobalKnownHostsFile none\n"
    if files.more_known is not None and files.more_known.is_file():
        # The one way to add to UserKnownHostsFile instead of replacing it (OpenSSH 8.5).
        cat = shutil.which("cat", path="/usr/bin:/bin") or "/bin/cat"
        text += f"  KnownHostsCommand {cat} {_quoted(files.more_known).replace('%', '%%')}\n"
    if files.config is not None:
        if not files.config.is_file():
            raise TransportFault(
                doing="reading the SSH configuration",
                target=str(files.config),
                why="no such file",
            )
        included: Sequence[Path] = [files.config.resolve()]
    else:
        included = [_HOME / ".ssh" / "config", Path("/etc/ssh/ssh_config")]
    for path in included:
        text += f"Host *\n  Include {_quoted(path)}\n"
    return text + _FALLBACK


def _quoted(path: Path) -> str:
    text = str(path)
    if any(c in text for c in '"\\\n*?[ '):
        raise TransportFault(
            doing="using", target=text, why="a path with characters that ssh_config can't hold"
        )
    return text


def _settings(target: Target, output: str) -> Settings:
    values: dict[str, list[str]] = {}
    for line in output.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name.lower(), []).append(value.strip())

    def last(name: str, default: str = "") -> str:
        return values.get(name, [default])[-1]

    def unless_none(name: str) -> str | None:
        value = last(name)
        return value if value and value.lower() != "none" else None

    user, hostname, port = last("user"), last("hostname", target.host), last("port", "22")
    tokens = {
        "%%": "%", "%d": str(_HOME), "%h": hostname, "%n": target.host, "%p": port, "%r": user,
        "%u": pwd.getpwuid(os.getuid()).pw_name, "%i": str(os.getuid()),
        "%k": unless_none("hostkeyalias") or target.host,
    }  # fmt: skip

    def expand(text: str) -> str:
        out, rest = "", text
        while rest:
            if rest[:2] in tokens:
                out, rest = out + tokens[rest[:2]], rest[2:]
            else:
                out, rest = out + rest[0], rest[1:]
        return str(_HOME) + out[1:] if out.startswith("~/") else out

    known = f"{last('userknownhostsfile')} {last('globalknownhostsfile')}".split()
    jump = unless_none("proxyjump")
    command = unless_none("proxycommand")
    agent = last("identityagent", "SSH_AUTH_SOCK")
    timeout = last("connecttimeout", "none")
    return Settings(
        alias=target.host,
        hostname=hostname,
        port=int(port),
        user=user,
        identity_files=tuple(map(expand, values.get("identityfile", []))),
        identities_only=last("identitiesonly") == "yes",
        identity_agent=None if agent == "SSH_AUTH_SOCK" else expand(agent),
        known_hosts=tuple(expand(path) for path in known if path != "none"),
        host_key_alias=unless_none("hostkeyalias"),
        proxy_command=expand(command) if command and not jump else None,
        proxy_jump=tuple(jump.split(",")) if jump else (),
        connect_timeout=float(timeout) if timeout.isdigit() and int(timeout) else 20.0,
        alive_interval=float(last("serveraliveinterval", "5")) or 5.0,
        alive_count=int(last("serveralivecountmax", "3")) or 3,
        address_family=last("addressfamily", "any"),
        bind_address=unless_none("bindaddress"),
    )
