"""Only messages that the table lists may cross the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import MAX_LINES, PeerFault, ProtocolFault, TransportFault, VersionMismatch
from transport.framing import FrameDecoder, encode
from transport.messages import (
    PROTOCOL_VERSION,
    SCHEMAS,
    check,
    check_greeting,
    fault_fields,
    greet,
    make,
    peer_fault,
)

ID = "mig-12345678"
SAMPLES: dict[str, dict[str, Any]] = {
    "hello": {"version": 1, "features": ["tls"], "software": "ckpt 0.1"},
    "preflight": {"id": ID},
    "report": {"ok": True},
    "go": {"id": ID},
    "running": {"id": ID},
    "cleaned": {"id": ID},
    "abort": {"code": "asked"},
    "fault": {"code": "asked"},
    "status": {"id": ID},
    "status_is": {"id": ID, "state": "prepared"},
    "settle": {"id": ID, "action": "resume"},
    "settled": {"id": ID, "action": "resume"},
    "lane_ask": {"kind": "tls"},
    "lane_offer": {"kind": "tls"},
    "note": {"topic": "layers"},
    "ping": {"n": 1},
    "pong": {"n": 1},
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_message_can_be_made_and_survives_the_wire(kind: str) -> None:
    message = make(kind, **SAMPLES.get(kind, {}))
    (got,) = FrameDecoder().feed(encode(message))
    assert check(got) == message


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_field_too_many_or_too_few_is_refused(kind: str) -> None:
    message = make(kind, **SAMPLES.get(kind, {}))
    with pytest.raises(ProtocolFault, match="unknown field"):
        check(message | {"extra": 1})
    for name in SCHEMAS[kind]:
        with pytest.raises(ProtocolFault, match="missing"):
            check({key: value for key, value in message.items() if key != name})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("go", {"id": "../../etc"}),
        ("go", {"id": "UPPER-CASE-ID"}),
        ("go", {"id": ID + "\n"}),
        ("go", {"id": 5}),
        ("report", {"ok": 1}),
        ("hello", {"version": True}),
        ("hello", {"version": 0}),
        ("hello", {"features": ["a b"]}),
        ("hello", {"features": "tls"}),
        ("hello", {"software": "x" * 101}),
        ("status_is", {"state": "somewhere"}),
        ("status_is", {"role": "boss"}),
        ("lane_offer", {"port": 70000}),
        ("lane_offer", {"socket": "/" * 108}),
        ("lane_ask", {"certificate": "text"}),
        ("note", {"body": {1: 2}}),
        ("note", {"topic": "Spaces here"}),
        ("preflight", {"mode": "hot"}),
        ("abort", {"why": "x" * 5000}),
    ],
)
def test_a_field_of_the_wrong_kind_or_size_is_refused(kind: str, change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolFault, match=next(iter(change))):
        check(make(kind, **SAMPLES.get(kind, {})) | change)


@given(st.dictionaries(st.text(max_size=10), st.integers() | st.text() | st.none(), max_size=5))
def test_anything_else_is_refused_in_one_line(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolFault) as caught:
        check(message)
    assert "\n" not in str(caught.value)


def test_defaults_are_not_shared_between_messages() -> None:
    make("note", topic="a")["body"]["x"] = 1
    assert make("note", topic="a")["body"] == {}


def test_versions_and_features_are_compared_in_the_greeting() -> None:
    assert check_greeting(greet("x", ["tls"]), needed=frozenset({"tls"})) == {"tls"}
    with pytest.raises(VersionMismatch, match="lacks tls"):
        check_greeting(greet("x", []), needed=frozenset({"tls"}))
    with pytest.raises(VersionMismatch, match=f"speaks protocol {PROTOCOL_VERSION + 1}"):
        check_greeting(greet("x", []) | {"version": PROTOCOL_VERSION + 1})


def test_a_fault_keeps_its_meaning_across_the_wire() -> None:
    fault = TransportFault(doing="a", target="b", why="c\nd", hint="e", retry=True)
    there = peer_fault(make("abort", **fault_fields(fault)))
    assert isinstance(there, PeerFault)
    assert (there.code, there.doing, there.target, there.why, there.hint, there.retry) == (
        "transport_fault",
        "a",
        "b",
        "c d",
        "e",
        True,
    )


def test_a_version_that_the_peer_refuses_is_the_same_reason_as_one_that_is_refused_here() -> None:
    fault = VersionMismatch(doing="a", target="b", why="c", hint="d")
    there = peer_fault(make("abort", **fault_fields(fault)))
    assert isinstance(there, VersionMismatch)
    assert str(there) == str(fault)


def test_the_lines_of_a_log_and_its_place_cross_the_wire_with_the_fault() -> None:
    fault = TransportFault(doing="a", target="b", why="c")
    fault.lines = ("(00.1) Error: \x1b[31mbad", *["more"] * 100)  # type: ignore[attr-defined]
    fault.log = "/logs/x.log"  # type: ignore[attr-defined]
    there = peer_fault(check(make("abort", **fault_fields(fault))))
    assert isinstance(there, PeerFault)
    assert there.lines[:2] == ("(00.1) Error: [31mbad", "more")
    assert len(there.lines) == MAX_LINES
    assert there.log == "/logs/x.log"


@pytest.mark.parametrize("facts", [{"lines": 7, "log": [1]}, {"lines": [b"x", 1, {}]}, {}])
def test_a_peer_that_sends_no_proper_lines_is_still_understood(facts: dict[str, object]) -> None:
    there = peer_fault(make("fault", code="x", why="y", facts=facts))
    assert isinstance(there, PeerFault)
    assert there.lines == ()


def test_any_exception_can_be_told_to_the_peer() -> None:
    check(make("abort", **fault_fields(ValueError("x" * 10000))))
    check(make("abort", **fault_fields(OSError(2, "No such file"))))


def test_what_a_peer_says_cannot_play_with_the_terminal() -> None:
    fault = peer_fault(make("fault", code="x", why="\x1b[2Jgone\r\nnext"))
    assert str(fault) == "working at the other host: [2Jgone next"
