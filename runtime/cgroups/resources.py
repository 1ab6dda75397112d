"""Limits as values: the OCI spec's `linux.resources`, checked field by field.

None means "not said": applying it leaves the kernel's value alone, and reading gives None where
nothing limits. -1 means "unlimited", said on purpose (an update that lifts a limit).

Every field that the spec knows is either here, or refused by name with the reason; a field that
it doesn't know is refused as well. Nothing is dropped silently: a container that runs without a
limit that its owner asked for is worse than one that doesn't start. (Where a 0 can't be a limit,
it means "not said": that is how engines that write every field write an empty one.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from runtime.cgroups.devices import DeviceRule, rules_from_oci, rules_to_oci
from runtime.cgroups.parse import parse_cpuset
from runtime.errors import BadInput, Unsupported

UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `swap` is memory and swap together, as OCI and cgroup v1 count it."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    check_before_update: bool | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """`quota`, `period`, `burst` in microseconds; `shares` 2..262144; `cpus`, `mems`: lists."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    burst: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """A weight, or bytes or operations per second, of one block device."""

    major: int
    minor: int
    value: int


@dataclass(frozen=True, slots=True)
class BlockIo:
    """Weights 10..1000; rates in bytes or operations per second, 0 = unlimited."""

    weight: int | None = None
    weight_device: tuple[DeviceLimit, ...] = ()
    read_bps: tuple[DeviceLimit, ...] = ()
    write_bps: tuple[DeviceLimit, ...] = ()
    read_iops: tuple[DeviceLimit, ...] = ()
    write_iops: tuple[DeviceLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class HugePages:
    """`page_size` as the kernel writes it in file names ("2MB", "1GB"); `limit` in bytes."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class Resources:
    """The limits of one container."""

    memory: Memory = field(default_factory=Memory)
    cpu: Cpu = field(default_factory=Cpu)
    block_io: BlockIo = field(default_factory=BlockIo)
    pids: int | None = None
    huge_pages: tuple[HugePages, ...] = ()
    devices: tuple[DeviceRule, ...] | None = None
    unified: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_oci(cls, spec: Mapping[str, Any] | None) -> Resources:
        """From `linux.resources` (OCI runtime-spec, config-linux). Raises BadInput, Unsupported."""
        return _from_oci(spec or {})

    def to_oci(self) -> dict[str, Any]:
        """Back to `linux.resources`: only what is set."""
        return _to_oci(self)

    def merged(self, change: Resources) -> Resources:
        """These limits with whatever `change` says put over them."""
        return Resources(
            memory=_over(self.memory, change.memory),
            cpu=_over(self.cpu, change.cpu),
            block_io=_over_io(self.block_io, change.block_io),
            pids=self.pids if change.pids is None else change.pids,
            huge_pages=tuple(
                {h.page_size: h for h in (*self.huge_pages, *change.huge_pages)}.values()
            ),
            devices=self.devices if change.devices is None else change.devices,
            unified={**self.unified, **change.unified},
        )


def _over(old: Any, new: Any) -> Any:
    said = {f.name: getattr(new, f.name) for f in fields(new)}
    return replace(old, **{name: value for name, value in said.items() if value is not None})


def _over_io(old: BlockIo, new: BlockIo) -> BlockIo:
    merged: dict[str, Any] = {"weight": old.weight if new.weight is None else new.weight}
    for name, _ in _IO_LISTS:
        by_device = {(d.major, d.minor): d for d in (*getattr(old, name), *getattr(new, name))}
        merged[name] = tuple(by_device.values())
    return BlockIo(**merged)


# ---------------------------------------------------------------- reading the spec

_IO_LISTS = (
    ("weight_device", "weightDevice"),
    ("read_bps", "throttleReadBpsDevice"),
    ("write_bps", "throttleWriteBpsDevice"),
    ("read_iops", "throttleReadIOPSDevice"),
    ("write_iops", "throttleWriteIOPSDevice"),
)
_NO_KERNEL_MEMORY = "kernel memory limits were removed from Linux; memory.limit counts it"
_REFUSED = {
    "memory.kernel": _NO_KERNEL_MEMORY,
    "memory.kernelTCP": _NO_KERNEL_MEMORY,
    "cpu.realtimeRuntime": "cgroup v2 has no realtime groups, so the limit couldn't move along",
    "cpu.realtimePeriod": "cgroup v2 has no realtime groups, so the limit couldn't move along",
    "blockIO.leafWeight": "its scheduler (CFQ) was removed from Linux",
    "network": "net_cls and net_prio don't exist in cgroup v2, so they couldn't move along",
    "rdma": "RDMA resources can't be checkpointed",
}
_DOING = "reading the spec's resources"


def _bad(where: str, why: str) -> BadInput:
    return BadInput(doing=_DOING, target=where, why=why)


class _Fields:
    """One JSON object of the spec: takes fields out by name, then refuses what is left."""

    def __init__(self, value: Any, where: str) -> None:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise _bad(where or "linux.resources", "has to be an object")
        self._left = {key: item for key, item in value.items() if item is not None}
        self._where = where

    def name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def number(
        self, key: str, low: int, high: int = 2**63 - 1, *, also: tuple[int, ...] = ()
    ) -> int | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _bad(self.name(key), f"{value!r} isn't a whole number")
        if not low <= value <= high and value not in also:
            or_else = "".join(f" or {other}" for other in also)
            raise _bad(self.name(key), f"{value} isn't within {low}..{high}{or_else}")
        return value

    def flag(self, key: str) -> bool | None:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise _bad(self.name(key), f"{value!r} isn't true or false")
        return value

    def items(self, key: str) -> list[Any]:
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _bad(self.name(key), "has to be a list")
        return value

    def end(self) -> None:
        """Refuse what nobody took."""
        for key, value in self._left.items():
            name = self.name(key)
            reason = _REFUSED.get(name)
            if reason is None:
                raise _bad(name, "is not a field that ckpt knows")
            if value not in ([], {}):
                raise Unsupported(doing=_DOING, target=name, why=reason)


def _from_oci(spec: Mapping[str, Any]) -> Resources:
    top = _Fields(spec, "")
    devices = top.take("devices")
    result = Resources(
        memory=_memory(_Fields(top.take("memory"), "memory")),
        cpu=_cpu(_Fields(top.take("cpu"), "cpu")),
        block_io=_block_io(_Fields(top.take("blockIO"), "blockIO")),
        pids=_pids(_Fields(top.take("pids"), "pids")),
        huge_pages=_huge_pages(top.items("hugepageLimits")),
        devices=None if devices is None else rules_from_oci(devices),
        unified=_unified(top.take("unified")),
    )
    top.end()
    return result


def _memory(entry: _Fields) -> Memory:
    one_page = 4096
    memory = Memory(
        limit=entry.number("limit", one_page, also=(UNLIMITED, 0)) or None,
        reservation=entry.number("reservation", 0, also=(UNLIMITED,)) or None,
        swap=entry.number("swap", one_page, also=(UNLIMITED, 0)) or None,
        swappiness=entry.number("swappiness", 0, 100),
        disable_oom_killer=entry.flag("disableOOMKiller"),
        check_before_update=entry.flag("checkBeforeUpdate"),
    )
    if entry.flag("useHierarchy") is False:
        raise Unsupported(
            doing=_DOING, target="memory.useHierarchy", why="Linux can't switch it off any more"
        )
    entry.end()
    if memory.swap is not None and memory.swap != UNLIMITED:
        if memory.limit in (None, UNLIMITED):
            # v2 limits swap alone: without a memory limit the sum says nothing about it.
            raise _bad("memory.swap", "needs memory.limit: it is memory and swap together")
        if memory.limit is not None and memory.swap < memory.limit:
            raise _bad("memory.swap", f"{memory.swap} is below memory.limit: it is both together")
    return memory


def _cpu(entry: _Fields) -> Cpu:
    cpu = Cpu(
        shares=entry.number("shares", 2, 262144, also=(0,)) or None,
        quota=entry.number("quota", 1000, also=(UNLIMITED, 0)) or None,
        period=entry.number("period", 1000, 1_000_000, also=(0,)) or None,
        burst=entry.number("burst", 0),
        cpus=_cpu_list(entry, "cpus"),
        mems=_cpu_list(entry, "mems"),
        idle=entry.number("idle", 0, 1),
    )
    entry.end()
    if cpu.burst:
        if cpu.quota is not None and (cpu.quota == UNLIMITED or cpu.burst > cpu.quota):
            raise _bad("cpu.burst", f"{cpu.burst} has to be within a cpu.quota (sched-bwc)")
        if cpu.quota is None:
            raise _bad("cpu.burst", "needs cpu.quota: it saves up what the quota left unused")
    if cpu.idle and cpu.shares is not None:
        raise _bad("cpu.shares", "means nothing while cpu.idle is 1")
    return cpu


def _cpu_list(entry: _Fields, key: str) -> str | None:
    value = entry.take(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _bad(entry.name(key), f"{value!r} isn't a list such as 0-2,7")
    parse_cpuset(value, what=entry.name(key))
    return value.replace(" ", "")


def _block_io(entry: _Fields) -> BlockIo:
    weight = entry.number("weight", 10, 1000, also=(0,)) or None
    lists: dict[str, tuple[DeviceLimit, ...]] = {}
    for name, key in _IO_LISTS:
        where = entry.name(key)
        check = _io_weight if name == "weight_device" else _io_rate
        lists[name] = tuple(_device_limit(item, where, check) for item in entry.items(key))
        numbers = [(limit.major, limit.minor) for limit in lists[name]]
        if len(set(numbers)) != len(numbers):
            raise _bad(where, "names a device twice")
    entry.end()
    return BlockIo(weight=weight, **lists)


def _io_weight(entry: _Fields) -> int | None:
    entry.take("leafWeight")
    return entry.number("weight", 10, 1000)


def _io_rate(entry: _Fields) -> int | None:
    return entry.number("rate", 0)


def _device_limit(item: Any, where: str, value_of: Callable[[_Fields], int | None]) -> DeviceLimit:
    entry = _Fields(item, where)
    major, minor = entry.number("major", 0, 4095), entry.number("minor", 0, 2**20 - 1)
    value = value_of(entry)
    entry.end()
    if major is None or minor is None or value is None:
        raise _bad(where, "needs major, minor and a value")
    return DeviceLimit(major, minor, value)


def _pids(entry: _Fields) -> int | None:
    limit = entry.number("limit", 1, 4_194_304, also=(0, UNLIMITED))
    entry.end()
    # 0 is what engines write for "no limit": no container could run with it.
    return UNLIMITED if limit == 0 else limit


def _huge_pages(items: list[Any]) -> tuple[HugePages, ...]:
    limits: list[HugePages] = []
    for item in items:
        entry = _Fields(item, "hugepageLimits")
        size, limit = entry.take("pageSize"), entry.number("limit", 0)
        entry.end()
        if not isinstance(size, str) or not _is_page_size(size) or limit is None:
            raise _bad("hugepageLimits", "needs pageSize (as 2MB or 1GB) and limit")
        limits.append(HugePages(size, limit))
    if len({entry.page_size for entry in limits}) != len(limits):
        raise _bad("hugepageLimits", "names a page size twice")
    return tuple(limits)


def _is_page_size(text: str) -> bool:
    return text[:-2].isascii() and text[:-2].isdigit() and text[-2:] in ("KB", "MB", "GB")


# What moves, freezes or kills processes isn't a limit, and ckpt itself depends on it.
_UNIFIED_CORE_ALLOWED = frozenset({"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"})


def _unified(value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _bad("unified", "has to be an object")
    for key, text in value.items():
        where = f"unified.{key}"
        if not isinstance(key, str) or not isinstance(text, str) or not text.isascii():
            raise _bad(where, "both the file's name and its content have to be ASCII text")
        if "/" in key or "." not in key or key.startswith(".") or len(key) > 128:
            raise _bad(where, "isn't the name of a file in a cgroup")
        if key.startswith("cgroup.") and key not in _UNIFIED_CORE_ALLOWED:
            raise _bad(where, "isn't a limit")
        if len(text) > 4096 or "\0" in text:
            raise _bad(where, "its content is too long or has a NUL in it")
    return dict(value)


# ---------------------------------------------------------------- and writing it


def _said(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, [], {}, ())}


def _to_oci(resources: Resources) -> dict[str, Any]:
    memory, cpu, io = resources.memory, resources.cpu, resources.block_io
    limits: dict[str, Any] = {
        key: [
            {
                "major": d.major,
                "minor": d.minor,
                "weight" if name == "weight_device" else "rate": d.value,
            }
            for d in getattr(io, name)
        ]
        for name, key in _IO_LISTS
    }
    result = _said(
        memory=_said(
            limit=memory.limit,
            reservation=memory.reservation,
            swap=memory.swap,
            swappiness=memory.swappiness,
            disableOOMKiller=memory.disable_oom_killer,
            checkBeforeUpdate=memory.check_before_update,
        ),
        cpu=_said(
            shares=cpu.shares,
            quota=cpu.quota,
            period=cpu.period,
            burst=cpu.burst,
            cpus=cpu.cpus,
            mems=cpu.mems,
            idle=cpu.idle,
        ),
        blockIO=_said(weight=io.weight, **limits),
        pids=_said(limit=resources.pids),
        hugepageLimits=[{"pageSize": h.page_size, "limit": h.limit} for h in resources.huge_pages],
        unified=dict(resources.unified),
    )
    if resources.devices is not None:
        result["devices"] = rules_to_oci(resources.devices)
    return result
