"""The manifest: what a checkpoint is of, and what it consists of.

Stored as msgpack, one map. Fields that this version doesn't know are kept out of the way, unless
the writer listed them under ``required``: then only a ckpt that knows them may use the checkpoint.
So a later version can add harmless fields freely and dangerous ones safely.

On disk the map stands between a head and a blake3 digest (pack_file, unpack_file), so that a
flipped byte in the manifest itself is found as well.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgpack
from blake3 import blake3

from images.errors import BadInput, Corrupt, Truncated, WrongVersion
from images.parts import PartInfo, check_part

FORMAT = 1
MAX_SIZE = 16 << 20
"""Bytes of a packed manifest."""
MAX_PARTS = 100_000

_FILE_MAGIC = b"CKPTMANI"
_FILE_HEAD = struct.Struct("<8sIIQ")
_DIGEST_SIZE = 32

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""Names of checkpoints and containers."""


@dataclass(frozen=True, slots=True)
class Rootfs:
    """What the root file system was joined from. id_base: host id of the container's id 0, or None
    without a user namespace; id_count: ids in that range."""

    layers: tuple[str, ...] = ()
    id_base: int | None = None
    id_count: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint.

    created: nanoseconds since the epoch. spec: OCI runtime-spec configuration. container, network:
    records of the runtime, opaque here. times: nanoseconds by phase. left_out: what the checkpoint
    doesn't contain, a line each. parent: name of the checkpoint this one was restored from, or "".
    required: names of fields without which the checkpoint must not be used.
    """

    name: str
    container_id: str
    container_name: str
    created: int
    host: str
    arch: str
    kernel: str
    criu: str
    cpu_features: tuple[str, ...] = ()
    cgroup_layout: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    container: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    rootfs: Rootfs = field(default_factory=Rootfs)
    parts: tuple[PartInfo, ...] = ()
    left_out: tuple[str, ...] = ()
    times: Mapping[str, int] = field(default_factory=dict)
    parent: str = ""
    left_running: bool = False
    required: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def part(self, kind: str, name: str) -> PartInfo | None:
        for part in self.parts:
            if (part.kind, part.name) == (kind, name):
                return part
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, digests as hex: what --json prints, and what is packed."""
        out: dict[str, Any] = {"format": FORMAT}
        for item in fields(self):
            value = getattr(self, item.name)
            out[item.name] = list(value) if isinstance(value, tuple) else value
        out["rootfs"] = {
            "layers": list(self.rootfs.layers),
            "id_base": self.rootfs.id_base,
            "id_count": self.rootfs.id_count,
        }
        out["parts"] = [
            {
                "kind": part.kind,
                "name": part.name,
                "size": part.size,
                "digest": part.digest.hex() if part.digest is not None else None,
            }
            for part in self.parts
        ]
        return out

    def to_bytes(self) -> bytes:
        """msgpack. Raises BadInput if it can't be packed or from_bytes would refuse it."""
        try:
            data: bytes = msgpack.packb(self.to_dict())
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(doing="packing", target="the manifest", why=str(error)) from error
        try:
            self.from_bytes(data)
        except Corrupt as error:
            raise BadInput(doing="packing", target="the manifest", why=error.why) from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest in data, every field checked. Raises Corrupt, WrongVersion."""
        if len(data) > MAX_SIZE:
            raise _corrupt(f"{len(data)} bytes; {MAX_SIZE} are allowed")
        try:
            raw = msgpack.unpackb(data, strict_map_key=True)
        except (ValueError, RecursionError, msgpack.UnpackException) as error:
            raise _corrupt(f"unreadable msgpack ({type(error).__name__})") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
            raise _corrupt("not a manifest")
        if raw["format"] != FORMAT:
            raise WrongVersion(
                doing="reading",
                target="the manifest",
                why=f"its format is {raw['format']}; this ckpt reads {FORMAT}",
                hint="use a newer ckpt",
            )
        required = _strings(raw, "required")
        unknown = sorted(set(required) - {item.name for item in fields(cls)})
        if unknown:
            raise WrongVersion(
                doing="reading",
                target="the manifest",
                why=f"it needs what this ckpt doesn't know: {', '.join(unknown)[:200]}",
                hint="use a newer ckpt",
            )
        return cls(
            name=_name(raw, "name"),
            container_id=_text(raw, "container_id"),
            container_name=_name(raw, "container_name"),
            created=_count(raw, "created"),
            host=_text(raw, "host"),
            arch=_text(raw, "arch"),
            kernel=_text(raw, "kernel"),
            criu=_text(raw, "criu"),
            cpu_features=_strings(raw, "cpu_features"),
            cgroup_layout=_text(raw, "cgroup_layout"),
            spec=_map(raw, "spec"),
            container=_map(raw, "container"),
            network=_map(raw, "network"),
            rootfs=_rootfs(_map(raw, "rootfs")),
            parts=_parts(raw),
            left_out=_strings(raw, "left_out"),
            times=_times(raw),
            parent=_text(raw, "parent"),
            left_running=_flag(raw, "left_running"),
            required=required,
        )


def pack_file(manifest: Manifest) -> bytes:
    """manifest.msgpack as it lies in the store."""
    data = manifest.to_bytes()
    body = _FILE_HEAD.pack(_FILE_MAGIC, FORMAT, 0, len(data)) + data
    return body + blake3(body).digest()


def unpack_file(data: bytes) -> Manifest:
    """The reverse of pack_file. Raises WrongVersion, Truncated, Corrupt."""
    if data[: len(_FILE_MAGIC)] != _FILE_MAGIC:
        raise _corrupt("this is not one")
    if len(data) < _FILE_HEAD.size + _DIGEST_SIZE:
        raise Truncated(doing="reading", target="the manifest", why="its end is missing")
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    _, version, _, length = _FILE_HEAD.unpack_from(body)
    if blake3(body).digest() != digest:
        if length > len(body) - _FILE_HEAD.size:
            raise Truncated(doing="reading", target="the manifest", why="its end is missing")
        raise _corrupt("its digest is wrong")
    if version != FORMAT:
        raise WrongVersion(
            doing="reading",
            target="the manifest",
            why=f"its format is {version}; this ckpt reads {FORMAT}",
            hint="use a newer ckpt",
        )
    if length != len(body) - _FILE_HEAD.size:
        raise _corrupt("its length is wrong")
    return Manifest.from_bytes(body[_FILE_HEAD.size :])


# ---- checking


def _corrupt(why: str) -> Corrupt:
    return Corrupt(doing="reading", target="the manifest", why=why)


def _get(raw: Mapping[str, Any], key: str, kind: type, what: str) -> Any:
    value = raw.get(key)
    # bool is a subclass of int, and True is no size.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _corrupt(f"{key} is not {what}")
    return value


def _text(raw: Mapping[str, Any], key: str) -> str:
    value: str = _get(raw, key, str, "a text")
    if len(value) > 4096:
        raise _corrupt(f"{key} is too long")
    return value


def _name(raw: Mapping[str, Any], key: str) -> str:
    value = _text(raw, key)
    if not NAME.fullmatch(value):
        raise _corrupt(f"{key} is not a valid name")
    return value


def _count(raw: Mapping[str, Any], key: str) -> int:
    value: int = _get(raw, key, int, "a number")
    if not 0 <= value < 1 << 63:
        raise _corrupt(f"{key} is out of range")
    return value


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value: bool = _get(raw, key, bool, "yes or no")
    return value


def _map(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value: dict[str, Any] = _get(raw, key, dict, "a map")
    if not all(isinstance(name, str) for name in value):
        raise _corrupt(f"{key} has keys that aren't text")
    return value


def _strings(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = _get(raw, key, list, "a list")
    if not all(isinstance(item, str) and len(item) <= 4096 for item in value):
        raise _corrupt(f"{key} is not a list of texts")
    return tuple(value)


def _times(raw: Mapping[str, Any]) -> dict[str, int]:
    value = _map(raw, "times")
    return {name: _count(value, name) for name in value}


def _rootfs(raw: Mapping[str, Any]) -> Rootfs:
    id_base = raw.get("id_base")
    if id_base is not None and not 0 <= _count(raw, "id_base") < 1 << 32:
        raise _corrupt("id_base is out of range")
    id_count = _count(raw, "id_count")
    if id_count > 1 << 32:
        raise _corrupt("id_count is out of range")
    return Rootfs(layers=_strings(raw, "layers"), id_base=id_base, id_count=id_count)


def _parts(raw: Mapping[str, Any]) -> tuple[PartInfo, ...]:
    value = _get(raw, "parts", list, "a list")
    if len(value) > MAX_PARTS:
        raise _corrupt(f"{len(value)} parts; {MAX_PARTS} are allowed")
    parts = tuple(_part(item) for item in value)
    if len({(part.kind, part.name) for part in parts}) != len(parts):
        raise _corrupt("a part is listed twice")
    return parts


def _part(raw: Any) -> PartInfo:
    if not isinstance(raw, dict):
        raise _corrupt("a part is not a map")
    kind, name = _text(raw, "kind"), _text(raw, "name")
    try:
        check_part(kind, name)
    except BadInput as error:
        raise _corrupt(f"a part named {error.target}") from error
    digest = raw.get("digest")
    if digest is not None:
        try:
            digest = bytes.fromhex(digest)
        except (TypeError, ValueError):
            raise _corrupt(f"the digest of {name} is not hexadecimal") from None
        if len(digest) != _DIGEST_SIZE:
            raise _corrupt(f"the digest of {name} is not 32 bytes long")
    return PartInfo(kind, name, _count(raw, "size"), digest)
