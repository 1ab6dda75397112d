"""Cgroup v1: how limits are written, read back and counted, controller by controller.

Source: the kernel's Documentation/admin-guide/cgroup-v1 and the code where that is silent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from runtime.cgroups.devices import ANY, DevicePolicy
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
from runtime.cgroups.stats import CpuStats, IoStats, MemoryStats, PidsStats, Stats

# An unlimited v1 counter reads as LONG_MAX rounded down to a page, whatever the page size is.
_NO_LIMIT = 2**63 - 65536
_NEW_SHARES = 1024


def _limit(fs: CgroupFs, path: str) -> int | None:
    value = fs.read_int(path)
    return None if value is None or value >= _NO_LIMIT else value


# ---------------------------------------------------------------- memory


def plan_memory(change: Change) -> list[Setting]:
    wish, now = change.wish.memory, change.now.memory
    steps: list[Setting] = []
    limit = swap = None
    if wish.limit is not None:
        limit = one("memory", "memory.limit", "memory.limit_in_bytes", wish.limit)
        steps.append(limit)
    if wish.swap is not None:
        swap = one("memory", "memory.swap", "memory.memsw.limit_in_bytes", wish.swap)
        steps.append(swap)
    # The kernel keeps limit <= memsw at every moment: who grows goes first with memsw.
    grows = now.swap is not None and (wish.swap == UNLIMITED or (wish.swap or 0) > now.swap)
    if limit and swap and grows:
        steps.reverse()
    if wish.reservation is not None:
        steps.append(
            one("memory", "memory.reservation", "memory.soft_limit_in_bytes", wish.reservation)
        )
    if wish.swappiness is not None:
        steps.append(one("memory", "memory.swappiness", "memory.swappiness", wish.swappiness))
    if wish.disable_oom_killer is not None:
        flag = int(wish.disable_oom_killer)
        steps.append(one("memory", "memory.disableOOMKiller", "memory.oom_control", flag))
    return steps


def read_memory(fs: CgroupFs, path: str) -> Memory:
    oom = fs.read_flat(f"{path}/memory.oom_control")
    return Memory(
        limit=_limit(fs, f"{path}/memory.limit_in_bytes"),
        reservation=_limit(fs, f"{path}/memory.soft_limit_in_bytes") or None,
        swap=_limit(fs, f"{path}/memory.memsw.limit_in_bytes"),
        swappiness=_own_swappiness(fs, path),
        disable_oom_killer=True if oom.get("oom_kill_disable") else None,
    )


def _own_swappiness(fs: CgroupFs, path: str) -> int | None:
    own = fs.read_int(f"{path}/memory.swappiness")
    inherited = fs.read_int(f"{path}/../memory.swappiness")
    return None if own == inherited else own


def stats_memory(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    usage = fs.read_int(f"{path}/memory.usage_in_bytes")
    limit = _limit(fs, f"{path}/memory.limit_in_bytes")
    both_limit = _limit(fs, f"{path}/memory.memsw.limit_in_bytes")
    detail = fs.read_flat(f"{path}/memory.stat")
    memory = MemoryStats(
        usage=usage,
        limit=limit,
        peak=fs.read_int(f"{path}/memory.max_usage_in_bytes"),
        swap=detail.get("total_swap"),
        swap_limit=None if both_limit is None or limit is None else both_limit - limit,
        anon=detail.get("total_rss"),
        file=detail.get("total_cache"),
        inactive_file=detail.get("total_inactive_file"),
        oom=None,
        oom_kill=fs.read_flat(f"{path}/memory.oom_control").get("oom_kill"),
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
        steps.append(one("cpu", "cpu.shares", "cpu.shares", then.shares or _NEW_SHARES))
    if wish.quota is not None or wish.period is not None:
        if now.burst:
            # burst <= quota holds at every moment: out of the way first, back at the end.
            steps.append(one("cpu", "cpu.burst", "cpu.cfs_burst_us", 0))
        period = then.period or DEFAULT_PERIOD
        if now.quota is not None:
            # Period and quota are two files. Unlimited in between, so that no mixture of old and
            # new is a bandwidth that the kernel refuses.
            steps.append(one("cpu", "cpu.quota", "cpu.cfs_quota_us", UNLIMITED))
        steps.append(one("cpu", "cpu.period", "cpu.cfs_period_us", period))
        quota = UNLIMITED if then.quota is None else then.quota
        steps.append(one("cpu", "cpu.quota", "cpu.cfs_quota_us", quota))
        if then.burst:
            steps.append(one("cpu", "cpu.burst", "cpu.cfs_burst_us", then.burst))
    elif wish.burst is not None:
        steps.append(one("cpu", "cpu.burst", "cpu.cfs_burst_us", wish.burst))
    return steps


def read_cpu(fs: CgroupFs, path: str) -> Cpu:
    idle = fs.read_int(f"{path}/cpu.idle") or None
    quota = fs.read_int(f"{path}/cpu.cfs_quota_us")
    shares = fs.read_int(f"{path}/cpu.shares")
    return Cpu(
        shares=None if idle or shares == _NEW_SHARES else shares,
        quota=quota,
        period=None if quota is None else fs.read_int(f"{path}/cpu.cfs_period_us"),
        burst=fs.read_int(f"{path}/cpu.cfs_burst_us") or None,
        idle=idle,
    )


def stats_cpu(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    flat = fs.read_flat(f"{path}/cpu.stat")
    cpu = replace(
        stats.cpu,
        periods=flat.get("nr_periods"),
        throttled_periods=flat.get("nr_throttled"),
        throttled_us=_micro(flat.get("throttled_time")),
        bursts=flat.get("nr_bursts"),
        burst_us=_micro(flat.get("burst_time")),
    )
    return replace(stats, cpu=cpu)


def stats_cpuacct(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    cpu: CpuStats = replace(
        stats.cpu,
        usage_us=_micro(fs.read_int(f"{path}/cpuacct.usage")),
        user_us=_micro(fs.read_int(f"{path}/cpuacct.usage_user")),
        system_us=_micro(fs.read_int(f"{path}/cpuacct.usage_sys")),
    )
    return replace(stats, cpu=cpu)


def _micro(nano: int | None) -> int | None:
    return None if nano is None else nano // 1000


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
    """What differs from the parent: a v1 cpuset is never empty, ours began as a copy of it."""
    own = {}
    for name in ("cpus", "mems"):
        value = fs.read(f"{path}/cpuset.{name}").strip()
        inherited = fs.read(f"{path}/../cpuset.{name}").strip()
        own[name] = None if value in ("", inherited) else value
    return Cpu(cpus=own["cpus"], mems=own["mems"])


def inherit_cpuset(fs: CgroupFs, path: str) -> None:
    """Fill a new cpuset from its parent: a task can't enter an empty one (ENOSPC)."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not fs.read(f"{path}/{name}").strip():
            fs.write(f"{path}/{name}", fs.read(f"{path}/../{name}").strip())


# ---------------------------------------------------------------- pids


def plan_pids(change: Change) -> list[Setting]:
    limit = change.wish.pids
    if limit is None:
        return []
    return [one("pids", "pids.limit", "pids.max", "max" if limit == UNLIMITED else limit)]


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

_THROTTLE = (
    ("read_bps", "throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("write_bps", "throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("read_iops", "throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("write_iops", "throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)
_BFQ_DEFAULT = 100


def plan_blkio(change: Change) -> list[Setting]:
    wish = change.wish.block_io
    steps: list[Setting] = []
    if wish.weight is not None:
        text = str(wish.weight)
        choices = (("blkio.bfq.weight", text), ("blkio.weight", text))
        steps.append(Setting("blkio", "blockIO.weight", choices))
    for limit in wish.weight_device:
        line = f"{limit.major}:{limit.minor} {limit.value}"
        choices = (("blkio.bfq.weight_device", line), ("blkio.weight_device", line))
        neutral = f"{limit.major}:{limit.minor} 0"
        steps.append(Setting("blkio", "blockIO.weightDevice", choices, neutral))
    for name, field, file in _THROTTLE:
        for limit in getattr(wish, name):
            text = str(limit.value)
            steps.append(per_device("blkio", f"blockIO.{field}", file, limit, text, "0"))
    return steps


def read_blkio(fs: CgroupFs, path: str) -> BlockIo:
    weight = fs.read_int(f"{path}/blkio.bfq.weight")
    if weight is None:
        weight = fs.read_int(f"{path}/blkio.weight")
    lists = {name: _device_lines(fs, f"{path}/{file}") for name, _, file in _THROTTLE}
    weights = _device_lines(fs, f"{path}/blkio.bfq.weight_device")
    weights = weights or _device_lines(fs, f"{path}/blkio.weight_device")
    return BlockIo(
        weight=None if weight == _BFQ_DEFAULT else weight, weight_device=weights, **lists
    )


def _device_lines(fs: CgroupFs, path: str) -> tuple[DeviceLimit, ...]:
    try:
        text = fs.read(path)
    except FileNotFoundError:
        return ()
    limits: list[DeviceLimit] = []
    for line in text.splitlines():
        device, _, value = line.partition(" ")
        major, colon, minor = device.partition(":")
        if colon:  # the first line of the weight file is "default N"
            limits.append(DeviceLimit(int(major), int(minor), int(value)))
    return tuple(limits)


def stats_blkio(fs: CgroupFs, path: str, stats: Stats) -> Stats:
    table: dict[tuple[int, int], dict[str, int]] = {}
    for file, unit in (("io_service_bytes", "bytes"), ("io_serviced", "ops")):
        name = f"{path}/blkio.throttle.{file}"
        source = f"{name}_recursive" if fs.exists(f"{name}_recursive") else name
        for line in fs.read(source).splitlines():
            parts = line.split()
            if len(parts) != 3 or parts[1] not in ("Read", "Write"):
                continue
            major, _, minor = parts[0].partition(":")
            device = table.setdefault((int(major), int(minor)), {})
            device[f"{parts[1].lower()}_{unit}"] = int(parts[2])
    io = tuple(IoStats(*device, **counts) for device, counts in sorted(table.items()))
    return replace(stats, io=io)


# ---------------------------------------------------------------- huge pages


def plan_hugetlb(change: Change) -> list[Setting]:
    return [
        one(
            "hugetlb",
            f"hugepageLimits.{limit.page_size}",
            f"hugetlb.{limit.page_size}.limit_in_bytes",
            limit.limit,
        )
        for limit in change.wish.huge_pages
    ]


def read_hugetlb(fs: CgroupFs, path: str) -> tuple[HugePages, ...]:
    limits: list[HugePages] = []
    for size in page_sizes():
        value = _limit(fs, f"{path}/hugetlb.{size}.limit_in_bytes")
        if value is not None:
            limits.append(HugePages(size, value))
    return tuple(limits)


# ---------------------------------------------------------------- devices


def plan_devices(change: Change) -> list[Setting]:
    rules = change.wish.devices
    if rules is None:
        return []
    policy = DevicePolicy.of(rules)
    # "a" also clears the exceptions, so what was there before doesn't matter.
    whole = "devices.allow" if policy.default_allow else "devices.deny"
    other = "devices.deny" if policy.default_allow else "devices.allow"
    steps = [one("devices", "devices", whole, "a")]
    for (kind, major, minor), letters in policy.exceptions.items():
        numbers = f"{_number(major)}:{_number(minor)}"
        access = "".join(letter for letter in "rwm" if letter in letters)
        steps.append(one("devices", "devices", other, f"{kind} {numbers} {access}"))
    return steps


def _number(number: int) -> str:
    return "*" if number == ANY else str(number)


PLANS: dict[str, Callable[[Change], list[Setting]]] = {
    "memory": plan_memory,
    "cpu": plan_cpu,
    "cpuset": plan_cpuset,
    "pids": plan_pids,
    "blkio": plan_blkio,
    "hugetlb": plan_hugetlb,
    "devices": plan_devices,
}

STATS: dict[str, Callable[[CgroupFs, str, Stats], Stats]] = {
    "memory": stats_memory,
    "cpu": stats_cpu,
    "cpuacct": stats_cpuacct,
    "pids": stats_pids,
    "blkio": stats_blkio,
}


READS: dict[str, Callable[[CgroupFs, str], Any]] = {
    "memory": read_memory,
    "cpu": read_cpu,
    "cpuset": read_cpuset,
    "pids": read_pids,
    "blkio": read_blkio,
    "hugetlb": read_hugetlb,
}
