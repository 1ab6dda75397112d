"""The doctor's visit to another host: the same examination there, asked for over SSH, and the clocks compared."""

from __future__ import annotations

import json
import time
from typing import Any

from ckpt.ops.doctor.row import Row, row_from
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry
from transport.errors import LinkLost, ProtocolFault, one_line
from transport.ssh import Session

_SECONDS = 120.0
"""For `--fix` may install packages there."""
_ANSWER = 1 << 20
_ROWS = 200
_CLOCK_SAMPLES = 3
_CLOCKS_APART = 1.0  # seconds


def examine_host(
    host: Host, target: str, *, fix: bool = False
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of a host by name or [USER@]HOST[:PORT], and what `--fix` did there. Raises TransportFault."""
    hosts = Registry(host)
    with hosts.connect(target) as session:
        rows = [Row("SSH", f"logged in at {session.target}"), clock(session)]
        words = [*hosts.command(target), "doctor", "--json", *(["--fix"] if fix else [])]
        status, said = _ask(session, words)
    answer = _parsed(target, said, status)
    try:
        found = [row_from(raw) for raw in answer["rows"][:_ROWS]]
        done = [_cure(raw) for raw in answer["fixed"][:_ROWS]]
    except (KeyError, TypeError, ValueError) as error:
        raise _nonsense(target, str(error)) from error
    return rows + found, done


def _ask(session: Session, words: list[str]) -> tuple[int, bytes]:
    with session.open_command(words) as command:
        command.close_stdin()
        said = bytearray()
        while piece := command.receive(65536, _SECONDS):
            said += piece
            if len(said) > _ANSWER:
                raise _nonsense(str(session.target), "its answer doesn't end")
        if not said:
            raise command.ended()
        return command.wait(_SECONDS), bytes(said)


def _parsed(target: str, said: bytes, status: int) -> dict[str, Any]:
    try:
        answer = json.loads(said)
    except ValueError as error:
        words = one_line(said.decode(errors="replace"))[:200]
        raise _nonsense(target, f"no JSON, but (status {status}): {words}") from error
    if not isinstance(answer, dict):
        raise _nonsense(target, "not an object")
    return answer


def _cure(raw: Any) -> dict[str, Any]:
    """What a cure did there, with only plain text in it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("worked"), bool):
        raise ValueError("not a cure")
    texts = {
        name: "".join(c for c in str(raw.get(name, ""))[:2000] if c.isprintable())
        for name in ("repair", "did")
    }
    return {**texts, "worked": raw["worked"]}


def _nonsense(target: str, why: str) -> ProtocolFault:
    hint = "is ckpt there of the same version?"
    return ProtocolFault(
        doing="reading the doctor's answer from", target=target, why=why, hint=hint
    )


def clock(session: Session) -> Row:
    """The offset of its clock to ours, between two bounds that hold whatever the link's delay."""
    best: tuple[float, float] | None = None
    for _ in range(_CLOCK_SAMPLES):
        before = time.time()
        _, said = _ask(session, ["date", "+%s.%N"])
        after = time.time()
        try:
            there = float(said)
        except ValueError as error:
            raise LinkLost(
                doing="asking the time of",
                target=str(session.target),
                why=one_line(said.decode(errors="replace"))[:200],
            ) from error
        bounds = there - after, there - before
        if best is None or bounds[1] - bounds[0] < best[1] - best[0]:
            best = bounds
    assert best is not None
    low, high = best
    value = f"{(low + high) / 2:+.3f} s, within {(high - low) / 2:.3f} s"
    if low > _CLOCKS_APART or high < -_CLOCKS_APART:
        return Row(
            "clock offset",
            value,
            "warn",
            "time jumps for containers that move, files get times out of order",
            "run an NTP client at both hosts",
        )
    return Row("clock offset", value)
