"""What people type for limits, turned into the numbers of the OCI spec."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation

from runtime.errors import BadInput

_UNITS = {"": 1, "b": 1} | {
    unit + suffix: 1024**power
    for power, unit in enumerate("kmgtp", start=1)
    for suffix in ("", "b", "ib")
}
_BIGGEST = 2**63 - 1

DEFAULT_PERIOD = 100_000  # microseconds, the kernel's own default


def _bad(what: str, text: str, why: str, hint: str = "") -> BadInput:
    return BadInput(doing=f"reading the {what}", target=repr(text), why=why, hint=hint)


def parse_size(text: str, *, what: str = "size", unlimited: bool = True) -> int:
    """Bytes in "512m", "1.5GiB", "4096"; units are powers of 1024.

    -1 for "-1", "max" or "unlimited" where `unlimited` says so. Raises BadInput.
    """
    plain = text.strip().lower()
    if plain in ("-1", "max", "unlimited"):
        if unlimited:
            return -1
        raise _bad(what, text, "has to be a number of bytes")
    match = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([a-z]*)", plain)
    if match is None or match.group(2) not in _UNITS:
        raise _bad(what, text, "isn't a size", "for example 512m, 1.5g or 1048576")
    size = int(Decimal(match.group(1)) * _UNITS[match.group(2)])
    if size > _BIGGEST:
        raise _bad(what, text, "is more than a 64-bit number holds")
    return size


def parse_cpus(text: str, *, period: int = DEFAULT_PERIOD) -> int:
    """The quota in microseconds per `period` that "1.5" CPUs mean. Raises BadInput."""
    try:
        cpus = Decimal(text.strip())
    except InvalidOperation:
        raise _bad("number of CPUs", text, "isn't a number", "for example 0.5 or 2") from None
    if not cpus.is_finite() or cpus <= 0:
        raise _bad("number of CPUs", text, "has to be above 0")
    if cpus > 65536:
        raise _bad("number of CPUs", text, "is more than any machine has")
    quota = math.ceil(cpus * period)
    if quota < 1000:
        raise _bad("number of CPUs", text, "is below the kernel's least, 0.01")
    return quota


def parse_cpuset(text: str, *, what: str = "cpuset") -> frozenset[int]:
    """The numbers in "0-3,8,10-11" (cpuset(7), "List format"). Raises BadInput."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"\s*([0-9]{1,5})(?:-([0-9]{1,5}))?\s*", part)
        if match is None:
            raise _bad(what, text, f"{part!r} isn't a number or range", "for example 0-2,7")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise _bad(what, text, f"the range {part.strip()} runs backwards")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def format_cpuset(numbers: frozenset[int]) -> str:
    """The shortest list for a set of numbers, as the kernel prints it."""
    parts: list[str] = []
    ordered = sorted(numbers)
    start = 0
    for i, number in enumerate(ordered):
        if i + 1 == len(ordered) or ordered[i + 1] != number + 1:
            first = ordered[start]
            parts.append(str(first) if first == number else f"{first}-{number}")
            start = i + 1
    return ",".join(parts)


def parse_duration_us(text: str, *, what: str = "duration") -> int:
    """Microseconds in "20ms", "500us", "0.1s"; a bare number is microseconds. Raises BadInput."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(us|ms|s)?", text.strip().lower())
    if match is None:
        raise _bad(what, text, "isn't a duration", "for example 20ms or 500us")
    scale = {None: 1, "us": 1, "ms": 1000, "s": 1_000_000}[match.group(2)]
    return int(Decimal(match.group(1)) * scale)


def parse_device_rate(text: str, *, what: str = "device limit") -> tuple[str, int]:
    """("/dev/vda", 1048576) for "/dev/vda:1m": bytes or operations per second. Raises BadInput."""
    device, colon, rate = text.rpartition(":")
    if not colon or not device.startswith("/"):
        raise _bad(what, text, "isn't DEVICE:RATE", "for example /dev/vda:10m")
    return device, parse_size(rate, what=what, unlimited=False)
