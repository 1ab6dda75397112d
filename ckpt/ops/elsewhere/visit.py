"""Programs on the other machine: far.py for what needs no ckpt there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckpt.ops.elsewhere import far
from transport.errors import PeerFault, ProtocolFault, RemoteMissing, one_line
from transport.ssh import Session
from transport.ssh_process import RemoteProcess

ANSWERING = 120.0
WORKING = 1200.0
"""Seconds: installing packages, compiling under emulation."""
_SENDING = 120.0
_ANSWER = 1 << 20
_PIECE = 1 << 20
# The distribution's Python, which other environments' PATH may hide.
_PYTHON = 'p=/usr/bin/python3; [ -x $p ] || p=python3; exec $p -c "$@"'
# far.py works where the archive was unpacked, and nothing of it stays.
_UNPACKED = (
    "d=$(mktemp -d /var/tmp/ckpt-setup-XXXXXXXX) || exit 1; trap 'rm -rf \"$d\"' EXIT;"
    f' cd "$d" && tar -xzf - --no-same-owner && ( {_PYTHON} )'
)


def ask(session: Session, *words: str, seconds: float = ANSWERING) -> dict[str, Any]:
    """What far.py says to WORDS. Raises PeerFault (its own word), RemoteMissing, TransportFault."""
    with session.open_command(_argv(_PYTHON, words)) as command:
        command.close_stdin()
        return _answer(session, command, seconds)


def send(session: Session, archive: Path, *words: str, seconds: float = WORKING) -> dict[str, Any]:
    """The same, with ARCHIVE unpacked around it."""
    with session.open_command(_argv(_UNPACKED, words)) as command, archive.open("rb") as file:
        while piece := file.read(_PIECE):
            command.send_all(piece, _SENDING)
        command.close_stdin()
        return _answer(session, command, seconds)


def _argv(script: str, words: tuple[str, ...]) -> list[str]:
    return ["sh", "-c", script, "sh", Path(far.__file__).read_text(), *words]


def _answer(session: Session, command: RemoteProcess, seconds: float) -> dict[str, Any]:
    said = bytearray()
    while piece := command.receive(65536, seconds):
        said += piece
        if len(said) > _ANSWER:
            break
    status = command.wait(seconds)
    where = str(session.target)
    if status == 127:
        raise RemoteMissing(
            doing="looking at",
            target=where,
            why="it has no Python",
            hint="apt install python3 there",
        )
    try:
        answer = json.loads(said)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
    except ValueError as error:
        words = one_line(f"{said.decode(errors='replace')} {command.last_words()}")[:300]
        raise ProtocolFault(
            doing="reading the answer from", target=where, why=words or f"status {status}: {error}"
        ) from error
    if "failed" in answer:
        raise PeerFault(
            doing="working at", target=where, why=one_line(str(answer["failed"]))[:1000]
        )
    return answer
