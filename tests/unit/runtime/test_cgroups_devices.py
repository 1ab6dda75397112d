"""The device program answers what the policy says, for any policy and any access."""

from __future__ import annotations

import struct
from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups.device_program import assemble
from runtime.cgroups.devices import ANY, DevicePolicy, DeviceRule, default_rules, rules_from_oci

_numbers = st.sampled_from([ANY, 0, 1, 3, 4095])
_letters = st.sampled_from(
    ["".join(c) for c in chain.from_iterable(combinations("rwm", n) for n in (1, 2, 3))]
)
_rules = st.lists(
    st.one_of(
        st.builds(DeviceRule, st.booleans()),
        st.builds(DeviceRule, st.booleans(), st.sampled_from("cb"), _numbers, _numbers, _letters),
    ),
    max_size=8,
)


def execute(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """A few instructions' worth of the kernel's BPF machine."""
    wanted = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = struct.pack("=III", wanted << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    position = 0
    while True:
        code, both, offset, value = struct.unpack_from("=BBhi", program, position * 8)
        dst, src = both & 15, both >> 4
        position += 1
        match code:
            case 0x61:
                assert src == 1, "the context pointer, before it's overwritten"
                (registers[dst],) = struct.unpack_from("=I", context, offset)
            case 0x54:
                registers[dst] &= value & 0xFFFFFFFF
            case 0x74:
                registers[dst] >>= value
            case 0xBC:
                registers[dst] = registers[src]
            case 0xB7:
                registers[dst] = value
            case 0x55:
                position += offset if registers[dst] != value else 0
            case 0x15:
                position += offset if registers[dst] == value else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"instruction {code:#x} isn't one of ours")


@given(
    _rules,
    st.sampled_from("cb"),
    st.sampled_from([0, 1, 3, 5]),
    st.sampled_from([0, 3, 9]),
    _letters,
)
def test_the_program_says_what_the_policy_says(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: str
) -> None:
    policy = DevicePolicy.of(rules)
    answer = execute(assemble(policy), kind, major, minor, access)
    assert answer == policy.allows(kind, major, minor, access)


def test_the_default_rules() -> None:
    policy = DevicePolicy.of(default_rules())
    assert policy.allows("c", 1, 3, "rw")
    assert policy.allows("c", 136, 77, "rw")
    assert policy.allows("b", 8, 0, "m")
    assert not policy.allows("b", 8, 0, "r")
    assert not policy.allows("c", 10, 200, "rw")


def test_no_rules_allow_everything() -> None:
    assert DevicePolicy.of(()).allows("b", 8, 0, "rwm")


def test_later_rules_take_back_what_earlier_ones_gave() -> None:
    give = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    take = {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "w"}
    policy = DevicePolicy.of(rules_from_oci([{"allow": False}, give, take]))
    assert policy.allows("c", 1, 3, "r")
    assert not policy.allows("c", 1, 3, "rw")


def test_exceptions_from_everything_allowed() -> None:
    policy = DevicePolicy.of(rules_from_oci([{"allow": False, "type": "b", "access": "w"}]))
    assert policy.allows("b", 8, 0, "r")
    assert not policy.allows("b", 8, 0, "rw")
