"""Sockets with other addresses: what goes on, what ends, what moves."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from images.image_file import build_image, parse_image
from images.readdress import readdress
from tests import needs

pytestmark = needs.pycriu

ADDRESSES = {"10.0.0.2": "10.0.0.9", "fd00::2": "fd00::9"}
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10


def words(address: str) -> list[int]:
    packed = ipaddress.ip_address(address).packed
    return list(struct.unpack(f"={len(packed) // 4}I", packed))


def sock(
    source: str, peer: str, state: int, *, proto: int = 6, port: int = 80
) -> dict[str, object]:
    return {
        "id": 1, "ino": 7, "family": 10 if ":" in source else 2, "type": 1, "proto": proto,
        "state": state, "src_port": port, "dst_port": 0 if state == LISTEN else 5000,
        "flags": "0x2", "backlog": 0, "src_addr": words(source), "dst_addr": words(peer),
        "fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0},
        "opts": {"so_sndbuf": 1, "so_rcvbuf": 1, "so_snd_tmo_sec": 0, "so_snd_tmo_usec": 0,
                 "so_rcv_tmo_sec": 0, "so_rcv_tmo_usec": 0},
    }  # fmt: skip


def moved(before: dict[str, object]) -> dict[str, object]:
    # Through pycriu and back: entries must stay what it takes and gives.
    data = build_image("FILES", [{"type": "INETSK", "id": 1, "isk": before}])
    entries = parse_image(data, "files.img", "FILES")
    readdress(entries, ADDRESSES)
    again = parse_image(build_image("FILES", entries), "files.img", "FILES")
    found: dict[str, object] = again[0]["isk"]
    return found


@pytest.mark.parametrize(
    ("source", "peer"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1")],
)
def test_a_connection_over_loopback_goes_on(source: str, peer: str) -> None:
    after = moved(sock(source, peer, ESTABLISHED))
    assert (after["state"], after["dst_port"]) == (ESTABLISHED, 5000)
    assert (after["src_addr"], after["dst_addr"]) == (words(source), words(peer))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("10.0.0.2", "10.0.0.9"),
        ("fd00::2", "fd00::9"),
        ("::ffff:10.0.0.2", "::ffff:10.0.0.9"),
    ],
)
def test_a_connection_to_itself_goes_on_with_the_new_address_at_both_ends(
    old: str, new: str
) -> None:
    after = moved(sock(old, old, ESTABLISHED))
    assert (after["src_addr"], after["dst_addr"]) == (words(new), words(new))
    assert after["state"] == ESTABLISHED


@pytest.mark.parametrize(
    ("source", "peer"),
    [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1"), ("::ffff:10.0.0.2", "::ffff:10.0.0.1")],
)
def test_a_connection_to_somebody_else_ends(source: str, peer: str) -> None:
    after = moved(sock(source, peer, ESTABLISHED))
    assert (after["state"], after["src_port"], after["dst_port"]) == (CLOSE, 0, 0)


def test_a_listening_socket_listens_at_the_new_address() -> None:
    after = moved(sock("10.0.0.2", "0.0.0.0", LISTEN))
    assert (after["state"], after["src_addr"], after["src_port"]) == (LISTEN, words("10.0.0.9"), 80)


def test_a_connected_udp_socket_keeps_its_peer() -> None:
    after = moved(sock("10.0.0.2", "10.0.0.1", ESTABLISHED, proto=17))
    assert (after["src_addr"], after["dst_addr"]) == (words("10.0.0.9"), words("10.0.0.1"))
    assert after["dst_port"] == 5000


def test_a_socket_of_every_address_stays_so() -> None:
    assert moved(sock("0.0.0.0", "0.0.0.0", LISTEN))["src_addr"] == [0]
