"""Two places in a program's own text that an injection needs. Nothing is ever written into text.

`call`    a system-call instruction that is followed by a return: it makes the injected calls
`restore` where signal handlers return to: it asks the kernel to load every register from the stack (sigreturn(2)).
          Every C library has it, static programs and Go's runtime too.

Any executable bytes will do, also in the middle of what was meant as another instruction. The vDSO comes first: it
is there in every program.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from runtime.tracking.vmas import Vma

# syscall; then any number of "xor r32, r32" (but esp) and of "pop r64"; ret. Those registers are restored anyway.
_CALL = re.compile(
    rb"\x0f\x05(?:\x31[\xc0-\xc3\xc5-\xcb\xcd-\xd3\xd5-\xdb\xdd-\xe3\xe5-\xeb\xed-\xf3\xf5-\xfb\xfd-\xff]"
    rb"|\x45\x31[\xc0-\xff])*(?P<pops>(?:[\x58-\x5b\x5d-\x5f]|\x41[\x58-\x5f])*)\xc3"
)
# mov $15, %rax (or %eax); syscall
_RESTORE = re.compile(rb"(?:\x48\xc7\xc0|\xb8)\x0f\x00\x00\x00\x0f\x05")
_SYSCALL = b"\x0f\x05"
_LARGEST = 256 << 20
_PIECE = 1 << 20
_OVERLAP = 64


@dataclass(frozen=True, slots=True)
class Gadgets:
    call: int
    pops: int
    """Words that are taken off the stack before the return address."""
    restore: int


def find(memory: int, vmas: list[Vma]) -> Gadgets | None:
    """Search the executable mappings through MEMORY, a descriptor of /proc/PID/mem."""
    call: tuple[int, int] | None = None
    restore: int | None = None
    executable = [vma for vma in vmas if "x" in vma.permissions and vma.name != "[vsyscall]"]
    # The C library and the loader are small and have both; a program's own text may be large.
    executable.sort(
        key=lambda vma: (vma.name != "[vdso]", "/ld-" not in vma.name, "/libc" not in vma.name)
    )
    for vma in executable:
        at, end = vma.start, min(vma.end, vma.start + _LARGEST)
        while at < end and (call is None or restore is None):
            try:
                text = os.pread(memory, min(_PIECE + _OVERLAP, end - at), at)
            except OSError:
                break  # a mapping beyond its file's end
            if call is None and (match := _CALL.search(text)):
                call = at + match.start(), _count_pops(match["pops"])
            if restore is None and (match := _RESTORE.search(text)):
                restore = at + match.start()
            at += _PIECE
        if call is not None and restore is not None:
            return Gadgets(*call, restore)
    return None


def _count_pops(code: bytes) -> int:
    return len(code.replace(b"\x41", b""))
