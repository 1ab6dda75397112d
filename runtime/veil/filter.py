"""The seccomp filter: PAGEMAP_SCAN becomes a user notification, everything else goes through untouched.

Classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}, see seccomp(2).
"""

from __future__ import annotations

import struct

from runtime import syscalls
from runtime.errors import Unsupported
from runtime.veil.scan import PAGEMAP_SCAN

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_INSTRUCTION = struct.Struct("=HBBI")
_NR, _ARCH, _COMMAND = 0, 4, 16 + 8  # offsets; the ioctl's command is the low word of args[1]
_USER_NOTIF = 0x7FC00000
_ALLOW = 0x7FFF0000

IOCTLS = {"x86_64": (0xC000003E, 16), "aarch64": (0xC00000B7, 29)}
"""By machine: AUDIT_ARCH_*, and the number of ioctl."""


def program(machine: str = syscalls.MACHINE) -> bytes:
    """The filter's instructions. Raises Unsupported for a machine that we don't know.

    The kernel looks at 32 bits of an ioctl's command only, so comparing the low word is exact.
    """
    if machine not in IOCTLS:
        raise Unsupported(
            doing="hiding pages from CRIU on", target=machine, why="no filter for this machine"
        )
    arch, ioctl = IOCTLS[machine]
    instructions = (
        (_LOAD_WORD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 0, 5, arch),
        (_LOAD_WORD, 0, 0, _NR),
        (_JUMP_EQUAL, 0, 3, ioctl),
        (_LOAD_WORD, 0, 0, _COMMAND),
        (_JUMP_EQUAL, 0, 1, PAGEMAP_SCAN),
        (_RETURN, 0, 0, _USER_NOTIF),
        (_RETURN, 0, 0, _ALLOW),
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)
