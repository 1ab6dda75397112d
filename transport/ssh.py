"""An authenticated SSH session with another host.

Trust: the host must show a key that a known_hosts file has for it; nothing is ever accepted on
first sight and nothing is written.  Logging in is by keys only.  ``ssh_settings`` says where to
go and how, the same for us and for the ``ssh`` programs of the OpenSSH lane.

What can go wrong silently is a dead peer: TCP notices nothing as long as nobody sends.  Each
session asks the server for an answer every ``ServerAliveInterval`` seconds, through jump hosts
too, and hangs up when none has come in ``ServerAliveInterval × ServerAliveCountMax`` seconds:
then whoever waits on it gets LinkLost.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
from collections.abc import Mapping, Sequence

import paramiko

from transport.errors import LinkLost, one_line
from transport.ssh_process import RemoteProcess
from transport.ssh_reach import reach
from transport.ssh_settings import ConfigFiles, Settings, SshConfig
from transport.target import Target, parse_target

log = logging.getLogger(__name__)
# Its tracebacks of lost connections are for debugging; without a handler Python would print them.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


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
        transport, settings = reach(where, config, opened, timeout, ())
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
