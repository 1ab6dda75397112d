"""The request frame: what CRIU writes is understood, anything else is refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.criu_wire import FrameFault, build_reply, build_request, parse_request
from tests import needs


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=300))
def test_a_request_comes_back_as_it_was(name: str) -> None:
    frame = build_request(name)
    assert struct.unpack("=I", frame[:4]) == (len(frame) - 4,)
    assert parse_request(frame[4:]) == name


@given(st.binary(max_size=64))
def test_any_bytes_give_a_name_or_a_frame_fault(message: bytes) -> None:
    with contextlib.suppress(FrameFault):
        assert isinstance(parse_request(message), str)


def test_fields_of_a_later_criu_are_skipped() -> None:
    later = b"\x10\x96\x01" + b"\x1a\x02xy" + b"\x25abcd" + b"\x31abcdefgh"
    assert parse_request(b"\x0a\x04core" + later) == "core"


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_cut_request_is_refused(cut: int) -> None:
    with pytest.raises(FrameFault):
        parse_request(b"\x0a\x04core"[:cut])


@needs.pycriu
def test_the_frames_are_those_of_crius_own_messages() -> None:
    from pycriu.images import img_streamer_pb2 as messages

    request = messages.img_streamer_request_entry(filename="pages-1.img").SerializeToString()
    assert build_request("pages-1.img") == struct.pack("=I", len(request)) + request
    for exists in (False, True):
        reply = messages.img_streamer_reply_entry(exists=exists).SerializeToString()
        assert build_reply(exists) == struct.pack("=I", len(reply)) + reply
