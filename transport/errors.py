"""What can go wrong between two hosts.

TransportFault                 base
├── UnknownHost                no key of this host is in known_hosts
├── HostKeyChanged             the host shows another key than the known one, or a revoked one
├── AuthRefused                the host did not let us in
├── Unreachable                no connection: name, route, port, proxy
├── RemoteMissing              logged in, but the program is not there
├── LinkLost                   an established connection ended
├── TimedOut                   no answer in time; the connection may still be there
├── PeerFault                  the peer reported an error of its own (``code``, ``fields``)
├── ProtocolFault              garbage, too large, or not allowed at this point
└── VersionMismatch            the two ends speak different versions

Each kind exists because a caller does something else with it: a changed key is never retried, a
lost link starts recovery, a missing program gets an installation hint, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_LINES = 20
"""Lines of a log that travel with an error."""


class TransportFault(Exception):
    """Something between two hosts failed.

    ``doing`` what, to ``target``, failed because of ``why``; ``hint`` says what a person may do
    next, ``retry`` whether the same call may succeed later without any change.
    """

    def __init__(
        self, *, doing: str, target: str, why: str, hint: str = "", retry: bool = False
    ) -> None:
        self.doing = doing
        self.target = target
        self.why = why
        self.hint = hint
        self.retry = retry
        super().__init__(doing, target, why, hint, retry)

    def __str__(self) -> str:
        line = f"{self.doing} {self.target}: {self.why}"
        if self.hint:
            line += f" ({self.hint})"
        return one_line(line)


class UnknownHost(TransportFault):
    """The host's key is in no known_hosts file; we never accept one by ourselves."""


class HostKeyChanged(TransportFault):
    """The host's key differs from the known one: an attack, or a new machine."""


class AuthRefused(TransportFault):
    """The host refused the login, or we have nothing to log in with."""


class Unreachable(TransportFault):
    """No connection could be made."""


class RemoteMissing(TransportFault):
    """The remote program was not found there (exit status 127)."""


class LinkLost(TransportFault):
    """An established connection ended before its time."""


class TimedOut(TransportFault):
    """The peer did not answer in time."""


class ProtocolFault(TransportFault):
    """The peer sent what it must not send."""


class VersionMismatch(TransportFault):
    """The two ends have no protocol version in common."""


class PeerFault(TransportFault):
    """An error that the peer reported: ``code`` is its kind there, ``fields`` its details.

    ``lines``: of a log that shows it; ``log``: where the whole log is at the peer; ``host``: the
    peer's name, from whoever knows it.
    """

    def __init__(
        self,
        *,
        doing: str,
        target: str,
        why: str,
        hint: str = "",
        retry: bool = False,
        code: str = "",
        fields: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(doing=doing, target=target, why=why, hint=hint, retry=retry)
        self.code = code
        self.fields = dict(fields or {})
        self.lines = _lines(self.fields.get("lines"))
        self.log = one_line(str(self.fields.get("log") or ""), 500)
        self.host = ""


def _lines(value: object) -> tuple[str, ...]:
    """Lines of a peer's log, fit for a terminal; their indentation tells nothing."""
    if not isinstance(value, list | tuple):
        return ()
    return tuple(one_line(line, 500) for line in value[:MAX_LINES] if isinstance(line, str))


def one_line(text: str, limit: int = 2000) -> str:
    """``text`` on one line without control characters, as text from a peer must be shown."""
    cleaned = "".join(c if c.isprintable() else " " for c in text)
    cleaned = " ".join(cleaned.split())
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"
