"""An authenticated SSH session with another host.

Trust: the host must show a key that a known_hosts file has for it; nothing is ever accepted on
first sight and nothing is written.  Logging in is by keys only.  ``ssh_settings`` says where to
go and how, the same for us and for the ``ssh`` programs of the OpenSSH lane.

Which key does a host show?  It has several, and the negotiation picks one by our preference: so
the types that we know of this host come first, as in OpenSSH; otherwise a host whose RSA key is
known would look like an unknown host as soon as it also has an Ed25519 key.

What can go wrong silently is a dead peer: TCP notices nothing as long as nobody sends.  Each
session asks the server for an answer every ``ServerAliveInterval`` seconds, through jump hosts
too, and hangs up when none has come in ``ServerAliveInterval × ServerAliveCountMax`` seconds:
then whoever waits on it gets LinkLost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import paramiko

from transport.errors import (
    HostKeyChanged,
    LinkLost,
    UnknownHost,
    Unreachable,
    one_line,
)
from transport.known_hosts import KnownKeys, fingerprint, known_keys, lookup_name
from transport.ssh_auth import authenticate
from transport.ssh_process import RemoteProcess
from transport.ssh_settings import ConfigFiles, Settings, SshConfig
from transport.target import Target, parse_target

log = logging.getLogger(__name__)
# Its tracebacks of lost connections are for debugging; without a handler Python would print them.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_FASTEST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_MOST_HOPS = 8


def connect(
    target: str, *, files: ConfigFiles | None = None, timeout: float | None = None
) -> Session:
    """Connect to ``[USER@]HOST[:PORT]`` and log in.

    ``timeout`` in seconds for each hop (default: ConnectTimeout of the configuration, or 20).
    Raises BadTarget, Unreachable, UnknownHost, HostKeyChanged, AuthRefused, LinkLost.
    """
    where = parse_target(target)
    config = SshConfig(files or ConfigFiles.from_environment())
    opened = contextlib.ExitStack()
    opened.callback(config.close)
    try:
        transport, settings = _reach(where, config, opened, timeout, ())
        return Session(where, settings, config, transport, opened)
    except BaseException:
        opened.close()
        raise


class Session:
    """A connection that is logged in.  ``close()`` it: it has threads, sockets and a file."""

    def __init__(
        self,
        target: Target,
        settings: Settings,
        config: SshConfig,
        transport: paramiko.Transport,
        opened: contextlib.ExitStack,
    ) -> None:
        self.target = target
        self.settings = settings
        self.config = config
        self._transport = transport
        self._opened = opened
        self._alive = _Heartbeat(transport, settings)

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    @property
    def direct_address(self) -> str | None:
        """The peer's IP address when nothing lies between (no jump host, no proxy command)."""
        if self.settings.proxy_command or self.settings.proxy_jump:
            return None
        try:
            return str(self._transport.sock.getpeername()[0])
        except OSError:
            return None

    def open_command(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> RemoteProcess:
        """Run a command there; its words reach it as they are, whatever its login shell quotes.

        ``env`` is set with env(1): sshd refuses most variables that come over the protocol.
        Raises LinkLost.  That the command doesn't exist shows at the end of its output, as
        RemoteMissing.
        """
        words = [f"{name}={value}" for name, value in (env or {}).items()]
        command = shlex.join([*(["env", *words] if words else []), *argv])
        try:
            channel = self._transport.open_session(timeout=self.settings.connect_timeout)
        except (paramiko.SSHException, EOFError, OSError) as problem:
            raise self._lost(problem) from problem
        try:
            return RemoteProcess(channel, command, str(self.target))
        except (paramiko.SSHException, EOFError, OSError) as problem:
            channel.close()
            raise self._lost(problem) from problem

    def _lost(self, problem: Exception) -> LinkLost:
        return LinkLost(
            doing="starting a command at",
            target=str(self.target),
            why=one_line(str(problem)) or "the connection was closed",
            retry=True,
        )

    def close(self) -> None:
        self._alive.stop()
        self._opened.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Heartbeat:
    """Asks the server for an answer now and then; closes the transport when none comes."""

    def __init__(self, transport: paramiko.Transport, settings: Settings) -> None:
        self._transport = transport
        self._interval = settings.alive_interval
        self._patience = settings.alive_interval * settings.alive_count
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ckpt-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._interval) and self._transport.is_active():
            # global_request waits without a limit, so somebody else must watch the clock.
            watch = threading.Timer(self._patience, self._give_up)
            watch.name, watch.daemon = "ckpt-heartbeat-watch", True
            watch.start()
            try:
                self._transport.global_request("keepalive@openssh.com", wait=True)
            except (paramiko.SSHException, EOFError, OSError):
                return
            finally:
                watch.cancel()
                watch.join()

    def _give_up(self) -> None:
        log.warning("no answer in %g s: hanging up", self._patience)
        self._transport.close()

    def stop(self) -> None:
        self._over.set()
        self._transport.close()
        self._thread.join(10)


# ── getting there ─────────────────────────────────────────────────────────────────────────────


def _reach(
    target: Target,
    config: SshConfig,
    opened: contextlib.ExitStack,
    timeout: float | None,
    chain: tuple[str, ...],
    via: paramiko.Transport | None = None,
) -> tuple[paramiko.Transport, Settings]:
    """Connect, check the host's key, log in; jump hosts first.  ``opened`` undoes it."""
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
            via, _ = _reach(
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
    transport = _handshake(sock, settings, target, patience, opened)
    authenticate(transport, settings)
    return transport, settings


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


def _handshake(
    sock: Any,
    settings: Settings,
    target: Target,
    patience: float,
    opened: contextlib.ExitStack,
) -> paramiko.Transport:
    """Negotiate and check the host's key; returns before anybody logged in."""
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
    _verify(blob, name, known, settings)
    return transport


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


def _verify(blob: bytes, name: str, known: KnownKeys, settings: Settings) -> None:
    """Raises UnknownHost or HostKeyChanged unless the key is known for this host."""
    # RFC 4253 6.6: a key begins with its type, as a string with a u32 length.
    kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode(errors="replace")
    shown = f"{kind} {fingerprint(blob)}"
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
