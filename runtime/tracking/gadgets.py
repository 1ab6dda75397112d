"""Three places in a program's own text that an injection needs. Nothing is ever written into text.

`call`    a system-call instruction that is followed by a return: it makes the injected calls
`restore` where signal handlers return to: it asks the kernel to load every register from the stack (sigreturn(2)).
          Every C library has it, static programs and Go's runtime too.
`skip`    the end of some function with many local variables: it moves the stack pointer a known way up and returns

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
# add $imm32, %rsp; pops; ret. From 0x128 to 0xff8, a multiple of 8.
_SKIP = re.compile(
    rb"\x48\x81\xc4(?P<way>[\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78\x80\x88\x90\x98\xa0\xa8\xb0\xb8\xc0\xc8\xd0\xd8\xe0\xe8"
    rb"\xf0\xf8]\x01|[\x00\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78\x80\x88\x90\x98\xa0\xa8\xb0\xb8\xc0\xc8\xd0"
    rb"\xd8\xe0\xe8\xf0\xf8][\x02-\x0f])\x00\x00(?P<pops>(?:[\x58-\x5b\x5d-\x5f]|\x41[\x58-\x5f])*)\xc3"
)
MOST_POPS = 2
"""Words between the stack pointer and the return address for which a frame has room: see frame.py."""
_LARGEST = 256 << 20
_PIECE = 1 << 20
_OVERLAP = 64


@dataclass(frozen=True, slots=True)
class Gadgets:
    call: int
    pops: int
    """Words that are taken off the stack before the return address."""
    restore: int
    skip: int
    way: int
    """Bytes that `skip` takes off the stack before the return address."""


def find(memory: int, vmas: list[Vma]) -> Gadgets | None:
    """Search the executable mappings through MEMORY, a descriptor of /proc/PID/mem."""
    call = restore = skip = None
    executable = [vma for vma in vmas if "x" in vma.permissions and vma.name != "[vsyscall]"]
    # The C library and the loader are small and have both; a program's own text may be large.
    executable.sort(
        key=lambda vma: (vma.name != "[vdso]", "/ld-" not in vma.name, "/libc" not in vma.name)
    )
    for vma in executable:
        at, end = vma.start, min(vma.end, vma.start + _LARGEST)
        while at < end and (call is None or restore is None or skip is None):
            try:
                text = os.pread(memory, min(_PIECE + _OVERLAP, end - at), at)
            except OSError:
                break  # a mapping beyond its file's end
            if call is None:
                call = next(
                    (
                        (at + m.start(), n)
                        for m in _CALL.finditer(text)
                        if (n := _pops(m)) <= MOST_POPS
                    ),
                    None,
                )
            if restore is None and (match := _RESTORE.search(text)):
                restore = at + match.start()
            if skip is None and (match := _SKIP.search(text)):
                way = int.from_bytes(match["way"], "little") + 8 * _pops(match)
                skip = at + match.start(), way
            at += _PIECE
        if call is not None and restore is not None and skip is not None:
            return Gadgets(*call, restore, *skip)
    return None


def _pops(match: re.Match[bytes]) -> int:
    return len(match["pops"].replace(b"\x41", b""))
