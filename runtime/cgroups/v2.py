"""Cgroup v2: how limits are written, read back and counted, controller by controller.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from runtime.cgroups.convert import (
    blkio_to_io_weight,
    io_to_blkio_weight,
    shares_to_weight,
    weight_to_shares,
)
from runtime.cgroups.files import CgroupFs
from runtime.cgroups.hugepages import page_sizes
from runtime.cgroups.parse import DEFAULT_PERIOD
from runtime.cgroups.plan import Change, Setting, one, per_device
from runtime.cgroups.resources import (
    UNLIMITED,
    BlockIo,
    Cpu,
    DeviceLimit,
    HugePages,
    Memory,
)
from runtime.cgroups.stats import IoStats, MemoryStats, PidsStats, Stats, parse_pressure

_NEW_WEIGHT = 100


def _or_max(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


# ---------------------------------------------------------------- memory


def plan_memory(change: Change) -> list[Setting]:
    wish, then = change.wish.memory, change.then.memory
    steps: list[Setting] = []
    if wish.limit is not None:
        steps.append(one("memory", "memory.limit", "memory.max", _or_max(wish.limit)))
    # OCI's swap is memory and swap together, here swap stands alone: it follows the memory limit.
    if wish.swap is not None or (wish.limit is not None and then.swap is not None):
        swap = UNLIMITED if then.swap is None else then.swap
        alone = swap if swap == UNLIMITED else swap - (then.limit or 0)
        steps.append(one("memory", "memory.swap", "memory.swap.max", _or_max(alone)))
    if wish.reservation is not None:
        # "No reservation" is no protection here; "max" would protect all of it from reclaim.
        low = max(wish.reservation, 0)
        steps.append(one("memory", "memory.reservation", "memory.low", low))
    if wish.swappiness is not None:
        steps.append(one("memory", "memory.swappiness", "memory.swappiness", wish.swappiness))
    if wish.disable_oom_killer:
        steps.append(one("memory", "memory.disableOOMKiller", "memory.oom_control", 1))
    return steps


def read_memory(fs: CgroupFs, path: str) -> Memory:
    limit = fs.read_int(f"{path}/memory.max")
    swap = fs.read_int(f"{path}/memory.swap.max")
    return Memory(
        limit=limit,
        reservation=fs.read_int(f"{path}/memory.low") or None,
        swap=None if limit is None or swap is None else limit + swap,
    )


def stats_memory(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    detail = fs.read_flat(f"{path}/memory.stat")
    events = fs.read_flat(f"{path}/memory.events")
    memory = MemoryStats(
        usage=fs.read_int(f"{path}/memory.current"),
        limit=fs.read_int(f"{path}/memory.max"),
        peak=fs.read_int(f"{path}/memory.peak"),
        swap=fs.read_int(f"{path}/memory.swap.current"),
        swap_limit=fs.read_int(f"{path}/memory.swap.max"),
        anon=detail.get("anon"),
        file=detail.get("file"),
        inactive_file=detail.get("inactive_file"),
        oom=events.get("oom"),
        oom_kill=events.get("oom_kill"),
    )
    return replace(stats, memory=memory)


# ---------------------------------------------------------------- cpu


def plan_cpu(change: Change) -> list[Setting]:
    wish, now, then = change.wish.cpu, change.now.cpu, change.then.cpu
    steps: list[Setting] = []
    if wish.idle is not None:
        steps.append(one("cpu", "cpu.idle", "cpu.idle", wish.idle))
    woken = now.idle and wish.idle == 0
    if (wish.shares is not None or woken) and not then.idle:
        weight = _NEW_WEIGHT if then.shares is None else shares_to_weight(then.shares)
        steps.append(one("cpu", "cpu.shares", "cpu.weight", weight))
    if wish.quota is not None or wish.period is not None:
        if now.burst:
            # burst <= quota holds at every moment: out of the way first, back at the end.
            steps.append(one("cpu", "cpu.burst", "cpu.max.burst", 0))
        quota = UNLIMITED if then.quota is None else then.quota
        text = f"{_or_max(quota)} {then.period or DEFAULT_PERIOD}"
        steps.append(one("cpu", "cpu.quota", "cpu.max", text))
        if then.burst:
            steps.append(one("cpu", "cpu.burst", "cpu.max.burst", then.burst))
    elif wish.burst is not None:
        steps.append(one("cpu", "cpu.burst", "cpu.max.burst", wish.burst))
    return steps


def read_cpu(fs: CgroupFs, path: str) -> Cpu:
    weight = fs.read_int(f"{path}/cpu.weight")
    idle = fs.read_int(f"{path}/cpu.idle") or None
    quota, period = _cpu_max(fs, path)
    return Cpu(
        shares=None if idle or weight in (None, _NEW_WEIGHT) else weight_to_shares(weight),
        quota=quota,
        period=None if quota is None else period,
        burst=fs.read_int(f"{path}/cpu.max.burst") or None,
        idle=idle,
    )


def _cpu_max(fs: CgroupFs, path: str) -> tuple[int | None, int | None]:
    try:
        quota, period = fs.read(f"{path}/cpu.max").split()
    except FileNotFoundError:
        return None, None
    return None if quota == "max" else int(quota), int(period)


def stats_cpu(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    """Times are counted even where the cpu controller isn't enabled; throttling isn't."""
    flat = fs.read_flat(f"{path}/cpu.stat")
    cpu = replace(
        stats.cpu,
        usage_us=flat.get("usage_usec"),
        user_us=flat.get("user_usec"),
        system_us=flat.get("system_usec"),
        periods=flat.get("nr_periods"),
        throttled_periods=flat.get("nr_throttled"),
        throttled_us=flat.get("throttled_usec"),
        bursts=flat.get("nr_bursts"),
        burst_us=flat.get("burst_usec"),
    )
    return replace(stats, cpu=cpu)


# ---------------------------------------------------------------- cpuset


def plan_cpuset(change: Change) -> list[Setting]:
    wish = change.wish.cpu
    steps: list[Setting] = []
    if wish.cpus is not None:
        steps.append(one("cpuset", "cpu.cpus", "cpuset.cpus", wish.cpus))
    if wish.mems is not None:
        steps.append(one("cpuset", "cpu.mems", "cpuset.mems", wish.mems))
    return steps


def read_cpuset(fs: CgroupFs, path: str) -> Cpu:
    """Empty means: like the parent."""
    own = {}
    for name in ("cpus", "mems"):
        try:
            own[name] = fs.read(f"{path}/cpuset.{name}").strip() or None
        except FileNotFoundError:
            own[name] = None
    return Cpu(cpus=own["cpus"], mems=own["mems"])


# ---------------------------------------------------------------- pids


def plan_pids(change: Change) -> list[Setting]:
    limit = change.wish.pids
    return [] if limit is None else [one("pids", "pids.limit", "pids.max", _or_max(limit))]


def read_pids(fs: CgroupFs, path: str) -> int | None:
    return fs.read_int(f"{path}/pids.max")


def stats_pids(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    pids = PidsStats(
        current=fs.read_int(f"{path}/pids.current"),
        limit=fs.read_int(f"{path}/pids.max"),
        peak=fs.read_int(f"{path}/pids.peak"),
    )
    return replace(stats, pids=pids)


# ---------------------------------------------------------------- block I/O

_IO_MAX = (
    ("read_bps", "throttleReadBpsDevice", "rbps"),
    ("write_bps", "throttleWriteBpsDevice", "wbps"),
    ("read_iops", "throttleReadIOPSDevice", "riops"),
    ("write_iops", "throttleWriteIOPSDevice", "wiops"),
)


def plan_io(change: Change) -> list[Setting]:
    wish = change.wish.block_io
    steps: list[Setting] = []
    if wish.weight is not None:
        choices = (
            # BFQ has OCI's own numbers; the other file serves the io.cost policy.
            ("io.bfq.weight", str(wish.weight)),
            ("io.weight", f"default {blkio_to_io_weight(wish.weight)}"),
        )
        steps.append(Setting("io", "blockIO.weight", choices))
    for limit in wish.weight_device:
        device = f"{limit.major}:{limit.minor}"
        choices = (
            ("io.bfq.weight", f"{device} {limit.value}"),
            ("io.weight", f"{device} {blkio_to_io_weight(limit.value)}"),
        )
        steps.append(Setting("io", "blockIO.weightDevice", choices, f"{device} default"))
    for name, field, key in _IO_MAX:
        for limit in getattr(wish, name):
            # v1 lifts a limit with 0, here 0 would be an error.
            text = f"{key}={limit.value or 'max'}"
            step = per_device("io", f"blockIO.{field}", "io.max", limit, text, f"{key}=max")
            steps.append(step)
    return steps


def read_io(fs: CgroupFs, path: str) -> BlockIo:
    bfq = fs.exists(f"{path}/io.bfq.weight")
    raw = fs.read_flat(f"{path}/io.bfq.weight" if bfq else f"{path}/io.weight")
    if raw.get("default") == _NEW_WEIGHT:  # the same number in both files
        del raw["default"]
    weights = raw if bfq else {name: io_to_blkio_weight(value) for name, value in raw.items()}
    weight = weights.pop("default", None)
    lists: dict[str, list[DeviceLimit]] = {name: [] for name, _, _ in _IO_MAX}
    for device, values in fs.read_nested(f"{path}/io.max").items():
        for name, _, key in _IO_MAX:
            if values.get(key, "max") != "max":
                lists[name].append(_device(device, int(values[key])))
    return BlockIo(
        weight=weight,
        weight_device=tuple(_device(device, value) for device, value in weights.items()),
        **{name: tuple(limits) for name, limits in lists.items()},
    )


def _device(numbers: str, value: int) -> DeviceLimit:
    major, _, minor = numbers.partition(":")
    return DeviceLimit(int(major), int(minor), value)


def stats_io(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    devices: list[IoStats] = []
    for device, values in fs.read_nested(f"{path}/io.stat").items():
        major, colon, minor = device.partition(":")
        if colon:
            devices.append(
                IoStats(
                    int(major),
                    int(minor),
                    read_bytes=int(values.get("rbytes", 0)),
                    write_bytes=int(values.get("wbytes", 0)),
                    read_ops=int(values.get("rios", 0)),
                    write_ops=int(values.get("wios", 0)),
                )
            )
    return replace(stats, io=tuple(devices))


# ---------------------------------------------------------------- huge pages


def plan_hugetlb(change: Change) -> list[Setting]:
    return [
        one(
            "hugetlb",
            f"hugepageLimits.{limit.page_size}",
            f"hugetlb.{limit.page_size}.max",
            limit.limit,
        )
        for limit in change.wish.huge_pages
    ]


def read_hugetlb(fs: CgroupFs, path: str) -> tuple[HugePages, ...]:
    limits: list[HugePages] = []
    for size in page_sizes():
        value = fs.read_int(f"{path}/hugetlb.{size}.max")
        # Some kernels print the unlimited counter instead of "max" here.
        if value is not None and value < 2**62:
            limits.append(HugePages(size, value))
    return tuple(limits)


# ---------------------------------------------------------------- raw, and pressure


def plan_unified(change: Change) -> list[Setting]:
    """The spec's `unified` map: file and text as they are."""
    return [
        one(file.partition(".")[0], f"unified.{file}", file, text)
        for file, text in change.wish.unified.items()
    ]


def stats_pressure(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    pressure = dict(stats.pressure)
    for resource in ("cpu", "memory", "io"):
        try:
            lines = parse_pressure(fs.read(f"{path}/{resource}.pressure"))
        except OSError:
            continue  # no CONFIG_PSI, or switched off (EOPNOTSUPP)
        if lines:
            pressure[resource] = lines
    return replace(stats, pressure=pressure)


PLANS: dict[str, Callable[[Change], list[Setting]]] = {
    "memory": plan_memory,
    "cpu": plan_cpu,
    "cpuset": plan_cpuset,
    "pids": plan_pids,
    "io": plan_io,
    "hugetlb": plan_hugetlb,
}

STATS: dict[str, Callable[[CgroupFs, str, Stats], Stats]] = {
    "memory": stats_memory,
    "pids": stats_pids,
    "io": stats_io,
}


READS: dict[str, Callable[[CgroupFs, str], Any]] = {
    "memory": read_memory,
    "cpu": read_cpu,
    "cpuset": read_cpuset,
    "pids": read_pids,
    "io": read_io,
    "hugetlb": read_hugetlb,
}
