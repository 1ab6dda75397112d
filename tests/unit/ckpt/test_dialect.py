"""Builds that don't understand each other find out before anything is touched."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from blake3 import blake3

from ckpt.ops import dialect
from ckpt.ops.late import Late
from images import bundle_records
from runtime.pagesource import wire
from transport.errors import ProtocolFault, VersionMismatch
from transport.messages import PROTOCOL_VERSION, SCHEMAS, greet

ZERO = {str: "", list: [], dict: {}, int: 0, bool: False}


def hello(*features: str) -> dict[str, Any]:
    greeting = greet("ckpt 0.1.0 build 12345678", list(features))
    return {name: value for name, value in greeting.items() if name != "type"}


def facts(**other: Any) -> dict[str, Any]:
    told = {name: ZERO[kind] for name, kind in dialect.FROM_SOURCE.items()}
    return {**told, "needs": dialect.needs("warm"), **other}


def test_this_build_understands_itself() -> None:
    dialect.check_destination(hello(*dialect.FEATURES))
    for mode in dialect.MODES:
        assert dialect.why_no_mode(hello(*dialect.FEATURES), mode) == ""
        dialect.check_source(facts(needs=dialect.needs(mode)))
    dialect.check_answer({name: ZERO[kind] for name, kind in dialect.FROM_DESTINATION.items()})


def test_a_destination_that_does_not_know_the_contents_is_refused_by_its_greeting() -> None:
    with pytest.raises(VersionMismatch, match=f"build 12345678.*lacks {dialect.CONTENTS}"):
        dialect.check_destination(hello("cold", "warm", "lazy"))


def test_a_mode_that_the_destination_does_not_know_is_no_reason_against_others() -> None:
    other = hello(dialect.CONTENTS, "cold")
    dialect.check_destination(other)
    assert "build 12345678" in dialect.why_no_mode(other, "lazy")
    assert dialect.why_no_mode(other, "cold") == ""


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        (None, "older build"),
        (["contents-99", "warm"], "needs contents-99, which is not known here"),
        ([dialect.CONTENTS, "hot"], "needs hot"),
    ],
)
def test_a_source_that_needs_what_is_not_known_here_is_refused(needs: object, why: str) -> None:
    told = facts(needs=needs)
    if needs is None:
        del told["needs"]
    with pytest.raises(VersionMismatch, match=why):
        dialect.check_source(told)


@pytest.mark.parametrize("name", dialect.FROM_SOURCE)
def test_a_fact_that_is_missing_or_of_another_kind_is_named(name: str) -> None:
    if name == "needs":
        return
    told = facts()
    del told[name]
    with pytest.raises(ProtocolFault, match=f"'{name}' is missing"):
        dialect.check_source(told)
    with pytest.raises(ProtocolFault, match=f"'{name}' is not what"):
        dialect.check_source({**told, name: None})


def test_what_a_ckpt_calls_itself_tells_builds_apart() -> None:
    version, _, build = dialect.software().rpartition(" ")
    assert version.endswith(" build") and len(build) == 8


def shape() -> str:
    """Of what crosses the wire, as far as tables say it."""
    parts = [
        PROTOCOL_VERSION,
        {kind: sorted(fields) for kind, fields in sorted(SCHEMAS.items())},
        sorted((name, kind.__name__) for name, kind in dialect.FROM_SOURCE.items()),
        sorted((name, kind.__name__) for name, kind in dialect.FROM_DESTINATION.items()),
        [(one.name, one.value) for one in [*wire.Kind, *wire.Encoding]],
        (wire.HEAD.format, wire.SHARED_FROM, wire.COPIES_FROM),
        bundle_records.VERSION,
        [(one.name, one.value) for one in bundle_records.Type],
        sorted(one.name for one in dataclasses.fields(Late)),
    ]
    return blake3(repr(parts).encode()).hexdigest()[:16]


SHAPES = {
    "contents-1": "c368660cc791c2ee",
    "contents-2": "634c02d967241e01",
    "contents-3": "bef7cef4bfe7d458",
}
"""What crossed with each number. One that has been released is not changed any more."""


def test_what_crosses_the_wire_has_not_changed_unnoticed() -> None:
    """Change it, and an earlier build misunderstands: a new number in CONTENTS, and a line in SHAPES."""
    assert SHAPES[dialect.CONTENTS] == shape()
