"""The spec's resources: what is taken, what is refused by which name, and what it becomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups import convert, v1, v2
from runtime.cgroups.parse import (
    format_cpuset,
    parse_cpus,
    parse_cpuset,
    parse_device_rate,
    parse_duration_us,
    parse_size,
)
from runtime.cgroups.plan import Change
from runtime.cgroups.resources import Resources
from runtime.errors import BadInput, RuntimeFault, Unsupported

FULL: dict[str, Any] = {
    "memory": {
        "limit": 1 << 30,
        "reservation": 1 << 29,
        "swap": 2 << 30,
        "swappiness": 10,
        "disableOOMKiller": True,
        "checkBeforeUpdate": True,
    },
    "cpu": {
        "shares": 512,
        "quota": 50_000,
        "period": 100_000,
        "burst": 10_000,
        "cpus": "0-1,3",
        "mems": "0",
    },
    "pids": {"limit": 100},
    "blockIO": {
        "weight": 300,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2000}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 30}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 40}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 22}],
    "unified": {"memory.high": "max", "io.latency": "8:0 target=100"},
    "devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    ],
}


def test_every_field_goes_there_and_back() -> None:
    assert Resources.from_oci(FULL).to_oci() == FULL


@pytest.mark.parametrize("spec", [None, {}, {"memory": None, "cpu": {}}])
def test_nothing_said_is_nothing_limited(spec: Any) -> None:
    assert Resources.from_oci(spec) == Resources()


@pytest.mark.parametrize(
    ("spec", "kind", "name"),
    [
        ({"memmory": {}}, BadInput, "memmory"),
        ({"memory": {"limits": 5}}, BadInput, "memory.limits"),
        ({"memory": {"kernel": 5}}, Unsupported, "memory.kernel"),
        ({"memory": {"useHierarchy": False}}, Unsupported, "memory.useHierarchy"),
        ({"memory": {"limit": "5"}}, BadInput, "memory.limit"),
        ({"memory": {"limit": True}}, BadInput, "memory.limit"),
        ({"memory": {"limit": -2}}, BadInput, "memory.limit"),
        ({"memory": {"limit": 2**63}}, BadInput, "memory.limit"),
        ({"memory": {"swap": 1 << 30}}, BadInput, "memory.swap"),
        ({"memory": {"limit": 1 << 30, "swap": 1 << 29}}, BadInput, "memory.swap"),
        ({"memory": {"swappiness": 101}}, BadInput, "memory.swappiness"),
        ({"memory": {"disableOOMKiller": 1}}, BadInput, "memory.disableOOMKiller"),
        ({"memory": []}, BadInput, "memory"),
        ({"cpu": {"shares": 1}}, BadInput, "cpu.shares"),
        ({"cpu": {"quota": 999}}, BadInput, "cpu.quota"),
        ({"cpu": {"period": 10}}, BadInput, "cpu.period"),
        ({"cpu": {"burst": 5}}, BadInput, "cpu.burst"),
        ({"cpu": {"burst": 5000, "quota": 4000}}, BadInput, "cpu.burst"),
        ({"cpu": {"burst": 5000, "quota": -1}}, BadInput, "cpu.burst"),
        ({"cpu": {"idle": 2}}, BadInput, "cpu.idle"),
        ({"cpu": {"idle": 1, "shares": 5}}, BadInput, "cpu.shares"),
        ({"cpu": {"cpus": "0-"}}, BadInput, "cpu.cpus"),
        ({"cpu": {"cpus": "3-1"}}, BadInput, "cpu.cpus"),
        ({"cpu": {"mems": 0}}, BadInput, "cpu.mems"),
        ({"cpu": {"realtimeRuntime": 5}}, Unsupported, "cpu.realtimeRuntime"),
        ({"pids": {"limit": -2}}, BadInput, "pids.limit"),
        ({"pids": {"max": 2}}, BadInput, "pids.max"),
        ({"blockIO": {"weight": 5}}, BadInput, "blockIO.weight"),
        ({"blockIO": {"leafWeight": 5}}, Unsupported, "blockIO.leafWeight"),
        ({"blockIO": {"throttleReadBpsDevice": {}}}, BadInput, "throttleReadBpsDevice"),
        ({"blockIO": {"throttleReadBpsDevice": [{}]}}, BadInput, "throttleReadBpsDevice"),
        ({"blockIO": {"throttleReadBpsDevice": [5]}}, BadInput, "throttleReadBpsDevice"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 1, "minor": 1, "rate": 1}] * 2}},
            BadInput,
            "throttleReadBpsDevice",
        ),
        ({"hugepageLimits": [{"pageSize": "2M", "limit": 1}]}, BadInput, "hugepageLimits"),
        ({"hugepageLimits": [{"pageSize": "../MB", "limit": 1}]}, BadInput, "hugepageLimits"),
        ({"network": {"classID": 5}}, Unsupported, "network"),
        ({"rdma": {"mlx5": {"hcaHandles": 1}}}, Unsupported, "rdma"),
        ({"unified": {"../cgroup.procs": "1"}}, BadInput, "unified."),
        ({"unified": {"cgroup.procs": "1"}}, BadInput, "unified.cgroup.procs"),
        ({"unified": {"cgroup.kill": "1"}}, BadInput, "unified.cgroup.kill"),
        ({"unified": {"memory.high": 5}}, BadInput, "unified.memory.high"),
        ({"devices": [{"allow": "yes"}]}, BadInput, "devices"),
        ({"devices": [{"allow": True, "type": "d"}]}, BadInput, "devices"),
        ({"devices": [{"allow": True, "access": "x"}]}, BadInput, "devices"),
        ({"devices": [{"allow": True, "major": 5}]}, BadInput, "devices"),
        ({"devices": [{"allow": True, "type": "c", "major": -5}]}, BadInput, "devices"),
        ({"devices": [{"allow": True, "Type": "c"}]}, BadInput, "devices"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    spec: dict[str, Any], kind: type[RuntimeFault], name: str
) -> None:
    with pytest.raises(kind) as caught:
        Resources.from_oci(spec)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pids_zero_and_minus_one_mean_no_limit() -> None:
    assert {Resources.from_oci({"pids": {"limit": n}}).pids for n in (0, -1)} == {-1}


# ---------------------------------------------------------------- v1 and v2 say the same


@given(st.integers(2, 262144))
def test_shares_keep_their_order_as_weights(shares: int) -> None:
    weight = convert.shares_to_weight(shares)
    assert 1 <= weight <= 10000
    assert convert.shares_to_weight(min(shares + 1, 262144)) >= weight


def test_the_default_shares_are_the_default_weight() -> None:
    assert convert.shares_to_weight(1024) == 100
    assert convert.weight_to_shares(100) == 1024
    assert (convert.shares_to_weight(2), convert.shares_to_weight(262144)) == (1, 10000)


def test_every_weight_survives_a_stay_on_v1() -> None:
    for weight in range(1, 10001):
        assert convert.shares_to_weight(convert.weight_to_shares(weight)) == weight


def test_every_blkio_weight_survives_a_stay_on_v2() -> None:
    for weight in range(10, 1001):
        assert convert.io_to_blkio_weight(convert.blkio_to_io_weight(weight)) == weight


def _writes(version: Any, controller: str, wish: dict[str, Any]) -> list[tuple[str, str]]:
    change = Change.of(Resources.from_oci(wish), Resources())
    return [step.choices[0] for step in version.PLANS[controller](change)]


def test_swap_is_a_sum_on_v1_and_alone_on_v2() -> None:
    wish = {"memory": {"limit": 4096, "swap": 12288}}
    assert ("memory.memsw.limit_in_bytes", "12288") in _writes(v1, "memory", wish)
    assert ("memory.swap.max", "8192") in _writes(v2, "memory", wish)


def test_no_reservation_protects_nothing_on_v2() -> None:
    wish = {"memory": {"reservation": -1}}
    assert _writes(v2, "memory", wish) == [("memory.low", "0")]


def test_a_lifted_rate_is_zero_on_v1_and_max_on_v2() -> None:
    wish = {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}}
    assert _writes(v1, "blkio", wish) == [("blkio.throttle.read_bps_device", "8:0 0")]
    assert _writes(v2, "io", wish) == [("io.max", "8:0 rbps=max")]


def test_merging_keeps_what_isnt_named() -> None:
    old = Resources.from_oci(FULL)
    rate = [{"major": 8, "minor": 0, "rate": 7}]
    new = old.merged(
        Resources.from_oci({"cpu": {"quota": 60_000}, "blockIO": {"throttleReadBpsDevice": rate}})
    )
    expected = {**FULL, "cpu": {**FULL["cpu"], "quota": 60_000}}
    expected["blockIO"] = {**FULL["blockIO"], "throttleReadBpsDevice": rate}
    assert new.to_oci() == expected


# ---------------------------------------------------------------- what people type


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("1 k", 1024),
        ("7b", 7),
        ("-1", -1),
        ("max", -1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "1x", "-5", "1e9", "0x10", "1.m.", "٣", "9e", "9999999p"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadInput, match="size"):
        parse_size(text)


def test_unlimited_only_where_it_makes_sense() -> None:
    with pytest.raises(BadInput):
        parse_size("max", unlimited=False)


@pytest.mark.parametrize(
    ("text", "quota"), [("1", 100_000), ("1.5", 150_000), ("0.01", 1000), ("64", 6_400_000)]
)
def test_cpus(text: str, quota: int) -> None:
    assert parse_cpus(text) == quota


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "x", "0.001", "99999999"])
def test_no_cpus(text: str) -> None:
    with pytest.raises(BadInput, match="CPUs"):
        parse_cpus(text)


@given(st.frozensets(st.integers(0, 300), min_size=1))
def test_cpu_lists_go_there_and_back(numbers: frozenset[int]) -> None:
    assert parse_cpuset(format_cpuset(numbers)) == numbers


@pytest.mark.parametrize(
    ("text", "microseconds"), [("20ms", 20_000), ("0.5s", 500_000), ("7us", 7), ("7", 7)]
)
def test_durations(text: str, microseconds: int) -> None:
    assert parse_duration_us(text) == microseconds


def test_device_rates() -> None:
    assert parse_device_rate("/dev/vda:1m") == ("/dev/vda", 1 << 20)
    for text in ("vda:1m", "/dev/vda", "/dev/vda:", "/dev/vda:max"):
        with pytest.raises(BadInput):
            parse_device_rate(text)
