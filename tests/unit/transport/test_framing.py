"""What a peer sends is bounded and strict, however it is cut."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import LinkLost, ProtocolFault, TimedOut
from transport.fakes import link_pair
from transport.framing import (
    MAX_DEPTH,
    MAX_FRAME,
    MAX_NODES,
    FdStream,
    FrameDecoder,
    FrameLink,
    encode,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
messages = st.dictionaries(st.text(), values, max_size=5)


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(st.lists(messages, max_size=4), st.lists(st.integers(1, 40), min_size=1))
def test_messages_come_back_however_the_stream_is_cut(
    sent: list[dict[str, object]], cuts: list[int]
) -> None:
    stream = b"".join(map(encode, sent))
    decoder = FrameDecoder()
    got = []
    at = turn = 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        got += decoder.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert got == sent
    assert decoder.pending == 0


@given(st.binary(max_size=200))
def test_rubbish_is_refused_or_waits_but_never_crashes(data: bytes) -> None:
    decoder = FrameDecoder(limit=100)
    try:
        for message in decoder.feed(data):
            assert isinstance(message, dict)
    except ProtocolFault as fault:
        assert "\n" not in str(fault)


@given(st.binary(min_size=1, max_size=60))
def test_any_body_is_a_map_or_refused(body: bytes) -> None:
    try:
        (message,) = FrameDecoder().feed(frame(body))
    except ProtocolFault:
        return
    assert msgpack.unpackb(body) == message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (msgpack.packb([1]), "no map"),
        (msgpack.packb("text"), "no map"),
        (b"\x81\xa1a", "ends within"),
        (b"\x80\x80", "rubbish"),
        (b"\x81\xa1a\xa1\xff", "not a valid"),  # no UTF-8
        (b"\x81\x01\x02", "not a valid"),  # a key that is no text
        (b"\x81\xa1a\xd4\x01\x00", "type 0xd4"),  # an extension
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "type 0xd6"),  # a timestamp
        (b"\x81\xa1a\xc1", "type 0xc1"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "more than"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "ends within"),
        (b"\x81\xa1a" + b"\x91" * MAX_DEPTH + b"\xc0", "deeper"),
        (b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", "deeper"),
    ],
)
def test_what_is_not_a_plain_map_is_refused_by_reason(body: bytes, why: str) -> None:
    with pytest.raises(ProtocolFault, match=why):
        FrameDecoder().feed(frame(body))


def test_a_length_beyond_the_limit_is_refused_before_anything_is_collected() -> None:
    with pytest.raises(ProtocolFault, match="4294967295"):
        FrameDecoder().feed(b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolFault):
        FrameDecoder().feed(b"\0\0\0\0")


def test_a_small_frame_cannot_unpack_into_a_huge_tree() -> None:
    count = MAX_FRAME - 100
    body = b"\x81\xa1a\xdd" + struct.pack(">I", count) + b"\x80" * count
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolFault, match=str(MAX_NODES)):
            decoder.feed(frame(body))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MAX_FRAME


def test_after_rubbish_the_stream_stays_refused() -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolFault):
        decoder.feed(b"\0\0\0\0")
    with pytest.raises(ProtocolFault):
        decoder.feed(encode({"fine": True}))


def test_messages_that_the_other_end_would_refuse_are_not_sent() -> None:
    for bad in ({"a": object()}, {"a": b"x" * MAX_FRAME}, {"a": [None] * MAX_NODES}, {"a": 2**65}):
        with pytest.raises(ProtocolFault):
            encode(bad)


def test_a_link_carries_large_messages_both_ways_at_once() -> None:
    here, there = link_pair()
    with here, there:
        big = {"data": os.urandom(2_000_000)}
        sender = threading.Thread(target=here.send, args=(big,))
        sender.start()
        there.send({"n": 1})
        assert here.recv(10) == {"n": 1}
        assert there.recv(10) == big
        sender.join()


def test_threads_that_send_together_do_not_mix_their_frames() -> None:
    here, there = link_pair()
    with here, there:
        threads = [
            threading.Thread(
                target=lambda n=n: [here.send({"n": n, "pad": bytes(9000)}) for _ in range(50)]
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        got = [there.recv(10)["n"] for _ in range(200)]
        for thread in threads:
            thread.join()
    assert sorted(got) == sorted([0, 1, 2, 3] * 50)


def test_waiting_in_vain_times_out_and_the_link_stays_good() -> None:
    here, there = link_pair()
    with here, there:
        with pytest.raises(TimedOut):
            here.recv(0.05)
        there.send({"late": True})
        assert here.recv(5) == {"late": True}


def test_a_closed_peer_is_a_lost_link_for_both_directions() -> None:
    here, there = link_pair()
    there.close()
    with here:
        with pytest.raises(LinkLost):
            here.recv(5)
        with pytest.raises(LinkLost):
            for _ in range(10):
                here.send({"data": bytes(100_000)})


def test_a_peer_that_closes_within_a_frame_is_a_lost_link() -> None:
    reader, writer = os.pipe()
    spare = os.dup(writer)
    os.write(writer, encode({"a": 1})[:-1])
    os.close(writer)
    with FrameLink(FdStream(reader, spare)) as link, pytest.raises(TimedOut):
        link.recv(0.05)
    # closing took both descriptors
    with pytest.raises(OSError):
        os.fstat(reader)


def test_a_peer_that_stops_reading_cannot_block_us_for_ever() -> None:
    here, there = link_pair()
    with here, there:
        with pytest.raises(TimedOut):
            here.send({"data": bytes(4_000_000)}, timeout=0.2)
        with pytest.raises(TimedOut):  # half a frame is out: nothing may follow it
            here.send({"n": 1})
