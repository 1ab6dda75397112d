"""A way back that doesn't need us: what a stopped thread was, laid out so that the thread itself can return to it.

While an injected system call runs, the thread's registers aren't its own. If the process that would put them back is
killed, the kernel lets the thread go, and it runs on with what is in the registers. So the injected call is made on a
stack of its own on which the way back lies ready: the call's `ret` goes to the place where signal handlers return to,
which asks the kernel to load every register and the signal mask from a signal frame. That frame is what is built
here, as the kernel itself would build it (struct rt_sigframe, arch/x86/kernel/signal_64.c).

    rsp ->  words that the code behind the system call pops
            address of the restorer                          <- struct rt_sigframe begins here
            struct ucontext: flags, link, stack, 256 bytes of registers, signal mask
            siginfo (unused)
            floating-point and vector state, aligned to 64 bytes

Where it lies: in the main thread's stack, far below where it is in use. Only the main thread ever touches that part,
and it is the thread that we stopped. Nobody may rely on what is there: the kernel itself puts signal frames below the
stack pointer. What was there is put back nevertheless.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from runtime.tracking.gadgets import Gadgets
from runtime.tracking.ptrace import Registers

# errno values by which the kernel notes that a system call is to be made again (include/linux/errno.h).
_RESTART_FROM_START = frozenset({-512, -513, -514})
_RESTART_REST = -516
_ENDED_BY_HANDLERS = frozenset({-514, _RESTART_REST})
_EINTR = -4
_RESTART_SYSCALL = 219
# The calls that the kernel goes on with by restart_syscall(2): poll, nanosleep, futex, clock_nanosleep.
_RESTARTED = frozenset({7, 35, 202, 230})
_NUMBER_THEN_CALL = re.compile(rb"\xb8(.{4})(?!.*\xb8).*\x0f\x05\Z", re.S)

_UC_FLAGS = 1 | 2 | 4
"""UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS: as the kernel sets them for 64-bit code."""
_NO_SUCH_STACK_FLAGS = 0x7FFF0000
"""sigreturn also sets the alternate signal stack, and ignores what it can't set: so the thread keeps its own."""
_MAGIC1 = 0x46505853
_MAGIC2 = struct.pack("=I", 0x46505845)
_SOFTWARE = 464  # offset of struct _fpx_sw_bytes in the state; ptrace has the feature mask there
_LEGACY = 576  # FXSAVE area and XSAVE header
_AMX_DATA = 1 << 18
_WITHOUT_AMX_DATA = 2816
_UCONTEXT = 8 + 8 + 24 + 256 + 8
_SIGINFO = 128
_ALIGN = 64
_MASK64 = (1 << 64) - 1

ROOM = 16384
"""Bytes that a frame may take, with the largest vector state that a process has without asking for more."""


class Unbuildable(Exception):
    """This thread's state doesn't fit into a frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    address: int
    data: bytes
    stack: int
    """rsp for the injected call."""


def build(place: int, registers: Registers, mask: int, state: bytes, gadgets: Gadgets) -> Frame:
    """A frame at PLACE or a little above it. Raises Unbuildable."""
    state = _sigframe_state(state)
    head = 8 * gadgets.pops
    start = place + head + 8 + _UCONTEXT + _SIGINFO
    floats = (start + _ALIGN - 1) & -_ALIGN
    context = struct.pack("=2Q", _UC_FLAGS, 0)
    context += struct.pack("=QiIQ", 0, _NO_SUCH_STACK_FLAGS, 0, 0)
    context += _registers(registers, floats)
    context += struct.pack("=Q", mask)
    data = bytes(head) + struct.pack("=Q", gadgets.restore) + context + bytes(_SIGINFO)
    data += bytes(floats - start) + state
    if len(data) > ROOM:
        raise Unbuildable(f"its vector registers take {len(state)} bytes")
    return Frame(place, data, place)


def is_frame(data: bytes, gadgets: Gadgets) -> bool:
    """Whether DATA begins with a frame that was built with these GADGETS."""
    mark = struct.pack("=QQQQI", gadgets.restore, _UC_FLAGS, 0, 0, _NO_SUCH_STACK_FLAGS)
    return data[8 * gadgets.pops :].startswith(mark)


def ended_by_handlers(registers: Registers) -> bool:
    """Whether it was interrupted in a call that any signal's handler ends with EINTR."""
    return _signed(registers.orig_rax) >= 0 and _signed(registers.rax) in _ENDED_BY_HANDLERS


def resumable(registers: Registers, text: bytes, *, interrupted: bool = False) -> Registers:
    """REGISTERS of a stopped thread as it can load them by itself; TEXT is what stands before its rip.

    Was it interrupted inside a system call, the kernel would make the call again, or go on with the rest of a time
    limit; sigreturn(2) does neither. So the thread makes the call again, from its beginning: what it waits for may
    come later than it asked for, and nothing else can be noticed. When the kernel has gone on with the call once
    already, only the text tells which one it was; is that not as C libraries write it, the call ends with EINTR. It
    does so, too, when it is INTERRUPTED: a signal waits whose handler would have ended it.
    """
    values = Registers.from_buffer_copy(registers)
    if interrupted and ended_by_handlers(registers):
        values.rax = _EINTR & _MASK64
        return values
    result = _signed(values.rax)
    if _signed(values.orig_rax) < 0 or result not in {*_RESTART_FROM_START, _RESTART_REST}:
        return values
    number = values.orig_rax
    if number == _RESTART_SYSCALL:
        match = _NUMBER_THEN_CALL.search(text)
        number = struct.unpack("=I", match[1])[0] if match else 0
        if number not in _RESTARTED:
            values.rax = _EINTR & _MASK64
            return values
    values.rax, values.rip = number, values.rip - 2
    return values


def _registers(r: Registers, floats: int) -> bytes:
    """struct sigcontext."""
    first = (r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15)
    second = (r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags)
    segments = (r.cs, r.gs & 0xFFFF, r.fs & 0xFFFF, r.ss)
    return (
        struct.pack("=18Q", *first, *second)
        + struct.pack("=4H", *segments)
        + struct.pack("=4Q", 0, 0, 0, 0)  # err, trapno, oldmask, cr2
        + struct.pack("=Q", floats)
        + bytes(64)
    )


def _sigframe_state(state: bytes) -> bytes:
    """ptrace's XSAVE image as a signal frame has it: with the kernel's two marks."""
    if len(state) < _LEGACY:
        raise Unbuildable("this kernel doesn't give its vector registers")
    features = struct.unpack_from("=Q", state, _SOFTWARE)[0]
    size = len(state)
    if not features & _AMX_DATA:
        # The register set is as long as the processor's largest; a frame only as long as what the thread may use.
        size = min(size, _WITHOUT_AMX_DATA)
    marks = struct.pack("=IIQI", _MAGIC1, size + len(_MAGIC2), features, size)
    end = _SOFTWARE + 48
    return state[:_SOFTWARE] + marks.ljust(48, b"\0") + state[end:size] + _MAGIC2


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
