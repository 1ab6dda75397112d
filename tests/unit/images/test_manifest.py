"""The manifest: round trip, and every field checked on the way in."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from images.errors import BadInput, Corrupt, ImageFault, Truncated, WrongVersion
from images.manifest import Manifest, Rootfs, pack_file, unpack_file
from images.parts import CRIU, FILES, PartInfo

FULL = Manifest(
    name="web-1",
    container_id="0123abcd",
    container_name="web",
    created=1_700_000_000_000_000_000,
    host="alpha",
    arch="x86_64",
    kernel="6.18.0",
    criu="4.2.1",
    cpu_features=("avx2", "sse2"),
    cgroup_layout="hybrid",
    spec={"ociVersion": "1.2.0", "process": {"args": ["sh"], "env": []}},
    container={"restart": "no", "ports": [1, 2]},
    network={"kind": "bridge", "mac": b"\2\0\0\0\0\1"},
    rootfs=Rootfs(layers=("blake3:aa", "blake3:bb"), id_base=100000, id_count=65536),
    parts=(
        PartInfo(CRIU, "pages-1.img", 1 << 40, bytes(range(32))),
        PartInfo(FILES, "upper.tar", 0, None),
    ),
    left_out=("volume /data",),
    times={"frozen": 12345},
    parent="web-0",
    left_running=True,
    required=("rootfs",),
)
LEAST = Manifest(
    name="a",
    container_id="a",
    container_name="a",
    created=0,
    host="",
    arch="",
    kernel="",
    criu="",
)


@pytest.mark.parametrize("manifest", [FULL, LEAST])
def test_it_comes_back_as_it_was(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert unpack_file(pack_file(manifest)) == manifest


def test_it_can_be_printed_as_json() -> None:
    plain = json.loads(json.dumps(FULL.to_dict(), default=bytes.hex))
    assert plain["parts"][0]["digest"] == bytes(range(32)).hex()
    assert FULL.size == 1 << 40
    assert FULL.part(CRIU, "pages-1.img") == FULL.parts[0]
    assert FULL.part(FILES, "pages-1.img") is None


def test_every_flipped_bit_and_every_cut_of_its_file_is_found() -> None:
    data = pack_file(LEAST)
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises((Corrupt, WrongVersion)):
            unpack_file(bytes(broken))
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            unpack_file(data[:length])
    with pytest.raises(Truncated):
        unpack_file(data[:-1])
    with pytest.raises(Corrupt):
        unpack_file(data + b"\0")


PART = {"kind": CRIU, "name": "a.img", "size": 1, "digest": None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", ""),
        ("name", "../up"),
        ("name", "a" * 129),
        ("container_name", "-x"),
        ("container_id", None),
        ("host", "h" * 5000),
        ("created", -1),
        ("created", True),
        ("created", 1.5),
        ("created", 1 << 63),
        ("cpu_features", "avx"),
        ("cpu_features", [1]),
        ("spec", []),
        ("spec", None),
        ("spec", {b"bytes": 1}),
        ("times", {"a": "b"}),
        ("times", {"a": -1}),
        ("rootfs", {}),
        ("rootfs", {"layers": [], "id_base": -1, "id_count": 0}),
        ("rootfs", {"layers": [], "id_base": 1 << 32, "id_count": 0}),
        ("rootfs", {"layers": [], "id_base": None, "id_count": 1 << 33}),
        ("parts", {}),
        ("parts", [5]),
        ("parts", [{}]),
        ("parts", [PART, PART]),
        ("parts", [{**PART, "name": "../a"}]),
        ("parts", [{**PART, "kind": "etc"}]),
        ("parts", [{**PART, "size": -1}]),
        ("parts", [{**PART, "digest": "xyz"}]),
        ("parts", [{**PART, "digest": "aa"}]),
        ("parts", [{**PART, "digest": 5}]),
        ("left_running", 1),
        ("parent", None),
        ("required", None),
    ],
)
def test_a_wrong_field_is_refused_by_name(key: str, value: Any) -> None:
    raw = {**LEAST.to_dict(), key: value}
    with pytest.raises(Corrupt) as caught:
        Manifest.from_bytes(msgpack.packb(raw))
    assert "\n" not in str(caught.value)
    del raw[key]
    with pytest.raises(Corrupt, match=key):
        Manifest.from_bytes(msgpack.packb(raw))


def test_a_newer_format_is_refused_and_harmless_news_is_not() -> None:
    raw = LEAST.to_dict()
    with pytest.raises(WrongVersion, match="format is 2"):
        Manifest.from_bytes(msgpack.packb({**raw, "format": 2}))
    later = {**raw, "encryption": {"key": "x"}}
    assert Manifest.from_bytes(msgpack.packb(later)) == LEAST
    with pytest.raises(WrongVersion, match="encryption"):
        Manifest.from_bytes(msgpack.packb({**later, "required": ["encryption"]}))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", b"\x80", msgpack.packb({"format": "1"}), b"\x91" * 5000, b"\xdf" * 9],
)
def test_garbage_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Manifest.from_bytes(data)


def test_what_could_not_be_read_again_is_not_written() -> None:
    from dataclasses import replace

    for bad in (
        replace(LEAST, name=".."),
        replace(LEAST, created=-1),
        replace(LEAST, spec={"x": object()}),
        replace(LEAST, spec={"x": bytes(17 << 20)}),
        replace(LEAST, required=("future",)),
    ):
        with pytest.raises(ImageFault) as caught:
            bad.to_bytes()
        assert isinstance(caught.value, (BadInput, WrongVersion))
