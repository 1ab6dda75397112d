"""This host's processor, as far as a program may have adapted itself to it.

/proc/cpuinfo tells much more than that: what only a kernel uses, what it found out or works around, and hints about
speed. These differ between two kernels on the very same processor, and no program breaks for want of them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable

# Instructions that a program can choose at its start, as CPUID tells it (Intel SDM vol. 2A, AMD APM vol. 3).
_NAMES = (
    "fpu tsc cx8 cmov clflush mmx fxsr sse sse2 syscall mmxext 3dnow 3dnowext rdtscp lm pni pclmulqdq ssse3 fma cx16"
    " sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a misalignsse 3dnowprefetch xop fma4 tbm"
    " lwp fsgsbase bmi1 hle avx2 bmi2 rtm rdseed adx clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 clzero gfni vaes"
    " vpclmulqdq rdpid cldemote movdiri movdir64b waitpkg serialize enqcmd tsxldtrk uintr pku ospke mwaitx rdpru"
    " avx_vnni avx_vnni_int8 avx_vnni_int16 avx_ifma avx_ne_convert sha512 sm3 sm4 cmpccxadd prefetchiti raoint apx"
    " amx_tile amx_int8 amx_bf16 amx_fp16 amx_complex"
)
_INSTRUCTIONS = frozenset(_NAMES.split())
_FAMILIES = ("avx512", "avx10")


def cpu_features() -> tuple[str, ...]:
    """The flags of /proc/cpuinfo (features on arm), sorted."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return tuple(sorted(value.split()))
    return ()


def lacking(theirs: Iterable[str]) -> list[str]:
    """What a program that started on a processor with THEIRS may use, and doesn't find here; sorted."""
    return missing(theirs, cpu_features(), platform.machine())


def missing(theirs: Iterable[str], ours: Iterable[str], machine: str) -> list[str]:
    """The same for a given processor. On arm all that the kernel tells is for programs."""
    absent = set(theirs) - set(ours)
    if machine == "x86_64":
        absent = {one for one in absent if one in _INSTRUCTIONS or one.startswith(_FAMILIES)}
    return sorted(absent)
