"""A target is what a person may mean, and nothing that a program could take for an option."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.target import BadTarget, Target, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", Target("web")),
        ("root@web", Target("web", "root")),
        ("root@web.example.com:2222", Target("web.example.com", "root", 2222)),
        ("192.0.2.1:22", Target("192.0.2.1", None, 22)),
        ("[2001:db8::1]", Target("2001:db8::1")),
        ("me@[fe80::1%eth0]:2222", Target("fe80::1%eth0", "me", 2222)),
        ("user@realm@host", Target("host", "user@realm")),
        ("under_score", Target("under_score")),
    ],
)
def test_targets_are_read_and_written_back(text: str, expected: Target) -> None:
    target = parse_target(text)
    assert target == expected
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "@host", "-host", "user@-host", "-user@host", "a b", "host:", "host:0",
        "host:65536", "host:22x", "host: 22", "::1", "2001:db8::1", "[::1", "[host]", "[::1]x",
        "[::1]:", "host\n", "host\x00", "hôst", "$(id)", "host;id", "`id`", "a/b", "host:٢٢",
        "x" * 300,
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadTarget) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_gives_a_host_or_user_that_looks_like_an_option(text: str) -> None:
    try:
        target = parse_target(text)
    except BadTarget:
        return
    for word in (target.host, target.user or "x"):
        assert not word.startswith("-")
        assert word.isprintable() and " " not in word
