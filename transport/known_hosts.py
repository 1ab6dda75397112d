"""Which keys a host may show: known_hosts files, as sshd(8) describes them.

We read, and never write.  What the usual Python readers leave out matters here: ``@revoked``
keys, patterns with ``*``, ``?`` and ``!``, names with a port.  ``@cert-authority`` lines are not
used, as paramiko can't verify host certificates: such a host is unknown to us.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from transport.errors import TransportFault

log = logging.getLogger(__name__)

_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HostKey:
    kind: str  # as in the key's blob: "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", …
    blob: bytes
    place: str  # file:line

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What the files say about one host."""

    trusted: tuple[HostKey, ...]
    revoked: tuple[HostKey, ...]
    authorities: bool  # there are @cert-authority lines for it

    @property
    def kinds(self) -> tuple[str, ...]:
        """Key types, each once, in the files' order."""
        return tuple(dict.fromkeys(key.kind for key in self.trusted))

    def trusts(self, blob: bytes) -> bool:
        return any(key.blob == blob for key in self.trusted) and not self.revokes(blob)

    def revokes(self, blob: bytes) -> bool:
        return any(key.blob == blob for key in self.revoked)


def fingerprint(blob: bytes) -> str:
    """As OpenSSH shows it: SHA256:… in base64 without padding."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def lookup_name(host: str, port: int) -> str:
    """A host's name in known_hosts: in brackets with its port, unless that is 22."""
    host = host.lower()
    return host if port == 22 else f"[{host}]:{port}"


def known_keys(name: str, files: Iterable[str]) -> KnownKeys:
    """All that ``files`` say about ``name``; a missing file says nothing.

    Raises TransportFault when a file is there but can't be read: going on without it could mean
    to miss a revocation.
    """
    trusted: list[HostKey] = []
    revoked: list[HostKey] = []
    authorities = False
    for path in files:
        for number, line in enumerate(_lines(path), 1):
            marker = ""
            words = line.split()
            if words and words[0].startswith("@"):
                marker = words.pop(0)
            if len(words) < 3 or words[0].startswith("#") or not _matches(name, words[0]):
                continue
            try:
                blob = base64.b64decode(words[2], validate=True)
            except (binascii.Error, ValueError):
                log.warning("%s:%d: not a key", path, number)
                continue
            key = HostKey(words[1], blob, f"{path}:{number}")
            if marker == "@revoked":
                revoked.append(key)
            elif marker == "@cert-authority":
                authorities = True
            elif not marker:
                trusted.append(key)
    return KnownKeys(tuple(trusted), tuple(revoked), authorities)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST:
                raise OSError(f"larger than {_LARGEST} bytes")
            return file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise TransportFault(
            doing="reading known hosts from",
            target=path,
            why=problem.strerror or str(problem),
        ) from problem


def _matches(name: str, patterns: str) -> bool:
    if patterns.startswith("|1|"):
        return _matches_hash(name, patterns)
    found = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        # Brackets are literal in known_hosts ([host]:port), a set only in fnmatch.
        wanted = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name, wanted):
            if negated:
                return False
            found = True
    return found


def _matches_hash(name: str, field: str) -> bool:
    try:
        _, _, salt, digest = field.split("|")
        expected = base64.b64decode(digest, validate=True)
        found = hmac.new(base64.b64decode(salt, validate=True), name.encode(), "sha1").digest()
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(found, expected)
