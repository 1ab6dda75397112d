"""Whether a dump made new names, read from the image as CRIU writes it."""

from __future__ import annotations

import struct

import pytest

from images.errors import Corrupt
from images.remaps import has_links

HEADER = bytes.fromhex("1943565454391359")


def image(*entries: str) -> bytes:
    packed = [bytes.fromhex(entry) for entry in entries]
    return HEADER + b"".join(struct.pack("I", len(entry)) + entry for entry in packed)


GHOST, LINKED, WITHOUT_A_KIND = "08f801100118 01", "08800210810218 00", "08800210810 2"


def test_nothing_was_renamed() -> None:
    assert not has_links(image())
    assert not has_links(image(GHOST, GHOST))


def test_a_link_among_ghosts() -> None:
    assert has_links(image(GHOST, LINKED, GHOST))


def test_an_entry_without_a_kind_is_a_link() -> None:
    assert has_links(image(WITHOUT_A_KIND.replace(" ", "")))


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_cut_image_is_refused(cut: int) -> None:
    with pytest.raises(Corrupt):
        has_links(image(GHOST)[:-cut] if cut < 11 else HEADER[:3])
