"""Getting to a host: through jump hosts or a proxy command, its key checked, logged in.

Which key does a host show?  It has several, and the negotiation picks one by our preference: so
the types that we know of this host come first, as in OpenSSH; otherwise a host whose RSA key is
known would look like an unknown host as soon as it also has an Ed25519 key.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from dataclasses import dataclass, replace
from typing import Any

import paramiko

from transport.errors import HostKeyChanged, UnknownHost, Unreachable, one_line
from transport.known_hosts import KnownKeys, fingerprint, known_keys, lookup_name
from transport.ssh_auth import authenticate
from transport.ssh_settings import ConfigFiles, Settings, SshConfig
from transport.target import Target, parse_target

_FASTEST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_MOST_HOPS = 8


@dataclass(frozen=True, slots=True)
class OfferedKey:
    """The key that a host shows. NAME is the host's in known_hosts; TRUSTED: a file has it."""

    name: str
    kind: str
    blob: bytes
    trusted: bool

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)


def offered_key(
    target: str, *, files: ConfigFiles | None = None, timeout: float | None = None
) -> OfferedKey:
    """Ask ``[USER@]HOST[:PORT]`` for its key, and hang up before anybody logs in.

    Jump hosts on the way are logged in to, so theirs must be known.  Raises BadTarget,
    Unreachable, HostKeyChanged (another key of it is known, or this one is revoked).
    """
    where = parse_target(target)
    with contextlib.ExitStack() as opened:
        config = SshConfig(files or ConfigFiles.from_environment())
        opened.callback(config.close)
        sock, settings = _way(where, config, opened, timeout, ())
        patience = timeout or settings.connect_timeout
        blob, name, known, _ = _negotiate(sock, settings, where, patience, opened)
        trusted = True
        try:
            _verify(blob, name, known, settings)
        except UnknownHost:
            trusted = False
    return OfferedKey(name, _kind(blob), blob, trusted)


def reach(
    target: Target,
    config: SshConfig,
    opened: contextlib.ExitStack,
    timeout: float | None,
    chain: tuple[str, ...],
    via: paramiko.Transport | None = None,
) -> tuple[paramiko.Transport, Settings]:
    """Connect, check the host's key, log in; jump hosts first.  ``opened`` undoes it."""
    sock, settings = _way(target, config, opened, timeout, chain, via)
    patience = timeout or settings.connect_timeout
    blob, name, known, transport = _negotiate(sock, settings, target, patience, opened)
    _verify(blob, name, known, settings)
    authenticate(transport, settings)
    return transport, settings


def _way(
    target: Target,
    config: SshConfig,
    opened: contextlib.ExitStack,
    timeout: float | None,
    chain: tuple[str, ...],
    via: paramiko.Transport | None = None,
) -> tuple[Any, Settings]:
    """A stream to the host's sshd, and how to use it.  ``chain``: places on whose way it lies."""
    settings = config.settings(target)
    if via is not None:
        settings = _without_proxy(settings)
    patience = timeout or settings.connect_timeout
    place = f"{settings.user}@{lookup_name(settings.hostname, settings.port)}"
    hops = [hop for hop in settings.proxy_jump if not _same(hop, settings, config)]
    if hops:
        if len(chain) >= _MOST_HOPS or place in chain:
            raise _unreachable(target, f"the jump hosts go in a circle: {', '.join(chain)}")
        for number, hop in enumerate(hops):
            # The first hop may itself lie behind others; the next are reached through it.
            hop_target = parse_target(hop.removeprefix("ssh://"))
            via, _ = reach(
                hop_target, config, opened, timeout, (*chain, place), via if number else None
            )
    sock: Any
    if via is not None:
        sock = _through(via, settings, target, patience)
    elif settings.proxy_command:
        sock = _by_command(settings.proxy_command, opened)
    else:
        sock = _dial(settings, target, patience)
    opened.callback(sock.close)
    return sock, settings


def _without_proxy(settings: Settings) -> Settings:
    return replace(settings, proxy_jump=(), proxy_command=None)


def _same(hop: str, settings: Settings, config: SshConfig) -> bool:
    """Whether a jump host is the host itself: ``Host *`` with ProxyJump also matches the jump."""
    theirs = config.settings(parse_target(hop.removeprefix("ssh://")))
    return (theirs.hostname, theirs.port) == (settings.hostname, settings.port)


def _unreachable(target: Target, why: str, hint: str = "") -> Unreachable:
    return Unreachable(
        doing="connecting to", target=str(target), why=one_line(why), hint=hint, retry=True
    )


def _dial(settings: Settings, target: Target, patience: float) -> socket.socket:
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(settings.address_family, 0)
    try:
        places = socket.getaddrinfo(settings.hostname, settings.port, family, socket.SOCK_STREAM)
    except OSError as problem:
        why = f"{settings.hostname}: {problem.strerror or problem}"
        raise _unreachable(target, why, "is the name right?") from problem
    failure: OSError | None = None
    for family, kind, number, _, address in places:
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(patience)
            if settings.bind_address:
                sock.bind((settings.bind_address, 0))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock
        except OSError as problem:
            failure = problem
            sock.close()
    why = failure.strerror or str(failure) if failure else "it has no address"
    raise _unreachable(target, f"port {settings.port}: {why}", "does sshd listen there?")


def _by_command(command: str, opened: contextlib.ExitStack) -> socket.socket:
    """ProxyCommand as ssh runs it: by the user's shell, with a socket as its stdio."""
    ours, theirs = socket.socketpair()
    shell = os.environ.get("SHELL") or "/bin/sh"
    with theirs:
        child = subprocess.Popen(
            [shell, "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            start_new_session=True,
        )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    opened.callback(end)
    return ours


def _through(
    via: paramiko.Transport, settings: Settings, target: Target, patience: float
) -> paramiko.Channel:
    try:
        return via.open_channel(
            "direct-tcpip",
            (settings.hostname, settings.port),
            ("127.0.0.1", 0),
            timeout=patience,
        )
    except (paramiko.SSHException, EOFError, OSError) as problem:
        raise _unreachable(target, f"the jump host could not connect: {problem}") from problem


def _negotiate(
    sock: Any,
    settings: Settings,
    target: Target,
    patience: float,
    opened: contextlib.ExitStack,
) -> tuple[bytes, str, KnownKeys, paramiko.Transport]:
    """The host's key, not checked yet, its name, what is known of it; nobody is logged in."""
    name, known = _known(settings)
    transport = paramiko.Transport(sock)
    opened.callback(_end, transport)
    options = transport.get_security_options()
    ciphers = [cipher for cipher in _FASTEST_CIPHERS if cipher in options.ciphers]
    options.ciphers = (*ciphers, *(c for c in options.ciphers if c not in ciphers))
    first = [kind for kind in options.key_types if _blob_kind(kind) in known.kinds]
    options.key_types = (*first, *(k for k in options.key_types if k not in first))
    transport.banner_timeout = transport.auth_timeout = patience
    try:
        transport.start_client(timeout=patience)
        if not transport.initial_kex_done:
            raise _unreachable(target, f"no SSH greeting in {patience:g} s")
        blob: bytes = transport.get_remote_server_key().asbytes()
    except (paramiko.SSHException, EOFError, OSError) as problem:
        why = str(problem) or "it closed the connection"
        raise _unreachable(target, f"the SSH handshake failed: {why}") from problem
    return blob, name, known, transport


def _end(transport: paramiko.Transport) -> None:
    transport.close()
    if transport.ident is not None:  # it was started
        transport.join(10)


def _blob_kind(algorithm: str) -> str:
    """rsa-sha2-512 and rsa-sha2-256 are signatures by a key of type ssh-rsa (RFC 8332)."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def _known(settings: Settings) -> tuple[str, KnownKeys]:
    if settings.host_key_alias:
        name = settings.host_key_alias.lower()
        return name, known_keys(name, settings.known_hosts)
    # OpenSSH checks an entry by address too, but trusts the name's alone; so do we.
    name = lookup_name(settings.hostname, settings.port)
    return name, known_keys(name, settings.known_hosts)


def _kind(blob: bytes) -> str:
    """RFC 4253 6.6: a key begins with its type, as a string with a u32 length."""
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode(errors="replace")


def _verify(blob: bytes, name: str, known: KnownKeys, settings: Settings) -> None:
    """Raises UnknownHost or HostKeyChanged unless the key is known for this host."""
    shown = f"{_kind(blob)} {fingerprint(blob)}"
    doing, target = "checking the host key of", name
    if known.revokes(blob):
        raise HostKeyChanged(
            doing=doing, target=target, why=f"its key {shown} is marked @revoked",
            hint="don't trust this host before its operator explains",
        )  # fmt: skip
    if known.trusts(blob):
        return
    files = ", ".join(settings.known_hosts) or "no file at all"
    if known.trusted:
        old = known.trusted[0]
        raise HostKeyChanged(
            doing=doing,
            target=target,
            why=f"it shows {shown}, but {old.place} has {old.kind} {old.fingerprint}",
            hint="somebody may be listening in; only if the host was really set up anew: "
            f"ssh-keygen -R {shlex.quote(name)}, then connect once with ssh",
        )
    why = f"its key {shown} is in none of {files}"
    if known.authorities:
        why += ", and host certificates (@cert-authority) are not supported"
    port = f"-p {settings.port} " if settings.port != 22 else ""
    raise UnknownHost(
        doing=doing,
        target=target,
        why=why,
        hint=f"connect once with: ssh {port}{settings.user}@{settings.alias}",
    )
