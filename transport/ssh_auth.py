"""Logging in: the agent's keys first, then the identity files; never a question to a person."""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import paramiko

from transport.errors import AuthRefused, LinkLost, one_line
from transport.ssh_settings import Settings

log = logging.getLogger(__name__)


def authenticate(transport: paramiko.Transport, settings: Settings) -> None:
    """Log in as ``settings.user``.  Raises AuthRefused (with what was tried), LinkLost."""
    where = f"{settings.user}@{settings.alias}"
    tried: list[str] = []
    locked: list[str] = []
    agent = _agent(settings)
    try:
        for label, key in _keys(settings, agent, locked):
            tried.append(label)
            try:
                left = transport.auth_publickey(settings.user, key)
            except paramiko.BadAuthenticationType as refusal:
                kinds = ", ".join(refusal.allowed_types)
                raise _refused(where, f"it wants {kinds}, not a key", "") from refusal
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    raise _refused(where, "it hung up after too many keys", _FEWER) from None
                continue
            except (paramiko.SSHException, EOFError, OSError) as problem:
                if not transport.is_active():
                    raise LinkLost(
                        doing="logging in to",
                        target=where,
                        why=one_line(str(problem)) or "the connection was closed",
                        retry=True,
                    ) from problem
                log.debug("%s could not be used: %s", label, problem)
                continue
            if left:
                raise _refused(where, f"it also wants {', '.join(left)}", "")
            log.debug("logged in to %s with %s", where, label)
            return
    finally:
        if agent is not None:
            agent.close()
    if locked:
        hint = f"ssh-add {locked[0]}"
        why = f"{locked[0]} is encrypted and no agent holds it"
        if tried:
            why += f"; refused: {', '.join(tried)}"
    else:
        why = f"refused: {', '.join(tried)}" if tried else "there is no key to log in with"
        hint = f"put a key of yours into ~{settings.user}/.ssh/authorized_keys there"
    raise _refused(where, why, hint)


_FEWER = "set IdentitiesOnly yes and one IdentityFile for this host in ~/.ssh/config"


def _refused(where: str, why: str, hint: str) -> AuthRefused:
    return AuthRefused(doing="logging in to", target=where, why=why, hint=hint)


def _agent(settings: Settings) -> paramiko.Agent | None:
    # paramiko knows only the agent of the environment; another one that the configuration names
    # would need the environment changed for the whole process.
    if settings.identity_agent not in (None, os.environ.get("SSH_AUTH_SOCK")):
        if settings.identity_agent != "none":
            log.warning("IdentityAgent %s is not used", settings.identity_agent)
        return None
    try:
        return paramiko.Agent()
    except (paramiko.SSHException, OSError, EOFError) as problem:
        log.debug("no use of the agent: %s", problem)
        return None


def _keys(
    settings: Settings, agent: paramiko.Agent | None, locked: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys to offer, best first, each once; encrypted files that nobody opened go to ``locked``."""
    named = {path: _public_blob(path) for path in settings.identity_files}
    offered: set[bytes] = set()
    held = {key.asbytes(): key for key in agent.get_keys()} if agent else {}
    wanted = [blob for blob in named.values() if blob in held]
    others = [] if settings.identities_only else [blob for blob in held if blob not in wanted]
    for blob in [*wanted, *others]:
        offered.add(blob)
        yield f"agent's {held[blob].get_name()}", held[blob]
    for path, public in named.items():
        if public in offered or not os.path.isfile(path):
            continue
        try:
            key = paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            # What cryptography raises for an encrypted key without a pass phrase.
            locked.append(path)
            continue
        except (paramiko.SSHException, ValueError, OSError, paramiko.pkey.UnknownKeyType) as why:
            log.warning("key %s can't be used: %s", path, one_line(str(why)))
            continue
        if key.asbytes() not in offered:
            offered.add(key.asbytes())
            yield path, key


def _public_blob(path: str) -> bytes | None:
    """The public half beside an identity file: tells which of the agent's keys it is."""
    try:
        words = Path(f"{path}.pub").read_text().split()
        return base64.b64decode(words[1], validate=True)
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error, ValueError):
        return None
