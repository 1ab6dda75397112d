"""Which checkpoints `prune` lets go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.ops.retention import Policy, choose, parse_age
from images.errors import Corrupt
from images.manifest import Manifest
from images.store import Listing
from runtime.errors import BadInput

SECOND = 10**9


def listing(name: str, container: str, created_s: int) -> Listing:
    manifest = Manifest(
        name=name,
        container_id="0123456789ab",
        container_name=container,
        created=created_s * SECOND,
        host="h",
        arch="x86_64",
        kernel="6.1",
        criu="4.2",
    )
    return Listing(name, manifest, None, 1000)


def names(listings: list[Listing]) -> list[str]:
    return [entry.name for entry in listings]


def test_the_newest_of_each_container_are_kept() -> None:
    store = [
        listing("a1", "a", 1),
        listing("a2", "a", 2),
        listing("a3", "a", 3),
        listing("b1", "b", 1),
        listing("b2", "b", 9),
    ]
    assert names(choose(store, Policy(keep=1), 100 * SECOND)) == ["a1", "b1", "a2"]
    assert names(choose(store, Policy(keep=2), 100 * SECOND)) == ["a1"]
    assert choose(store, Policy(keep=3), 100 * SECOND) == []


def test_age_and_number_must_both_allow_it() -> None:
    store = [listing("old", "a", 0), listing("mid", "a", 50), listing("new", "a", 99)]
    assert names(choose(store, Policy(older_than=40), 100 * SECOND)) == ["old", "mid"]
    assert names(choose(store, Policy(keep=2, older_than=40), 100 * SECOND)) == ["old"]
    assert names(choose(store, Policy(keep=0, older_than=50), 100 * SECOND)) == ["old", "mid"]


def test_only_the_named_container_is_looked_at() -> None:
    store = [listing("a1", "a", 1), listing("b1", "b", 1)]
    assert names(choose(store, Policy(keep=0, container="b"), 100 * SECOND)) == ["b1"]


def test_what_cannot_be_read_is_never_chosen() -> None:
    broken = Listing("x", None, Corrupt(doing="reading", target="x", why="broken"), 10)
    assert choose([broken], Policy(keep=0), 100 * SECOND) == []


def test_no_policy_is_refused() -> None:
    with pytest.raises(BadInput):
        choose([], Policy(), 0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=20),
    st.integers(0, 5),
)
def test_exactly_the_newest_stay(found: list[tuple[str, int]], keep: int) -> None:
    store = [listing(f"c{n}", owner, at) for n, (owner, at) in enumerate(found)]
    gone = choose(store, Policy(keep=keep), 100 * SECOND)
    for owner in "abc":
        mine = [entry for entry in store if entry.manifest.container_name == owner]  # type: ignore[union-attr]
        stay = [entry for entry in mine if entry not in gone]
        assert len(stay) == min(keep, len(mine))
        if stay and len(stay) < len(mine):
            oldest = min(entry.manifest.created for entry in stay)  # type: ignore[union-attr]
            assert all(
                entry.manifest.created <= oldest  # type: ignore[union-attr]
                for entry in mine
                if entry in gone
            )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("1h", 3600), ("7d", 604800), ("2w", 1209600)]
)
def test_ages(text: str, seconds: int) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5d", "7 d", "7y", "9999999d", "1d2h"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        parse_age(text)
