"""A way back that doesn't need us: what a stopped thread was, laid out so that the thread itself can return to it.

While an injected system call runs, the thread's registers aren't its own. If the process that would put them back is
killed, the kernel lets the thread go, and it runs on with what is in the registers. So the injected call is made on a
stack of its own on which the way back lies ready: the call's `ret` goes to the place where signal handlers return to,
which asks the kernel to load every register and the signal mask from a signal frame. Such frames are built here, as
the kernel itself would build them (struct rt_sigframe, arch/x86/kernel/signal_64.c):

    B        address of the restorer: the call's `ret` goes there
    B + 8    struct ucontext of the first frame: the thread goes on, an interrupted system call is made again
    ...
    B + 16 + 8 * pops + way
             address of the restorer, then the second frame: the interrupted system call ends with EINTR
    ...      floating-point and vector state for both, aligned to 64 bytes

Why two. A system call that was interrupted is made again, or ends with EINTR because a signal's handler ran: which one
depends on the call and the handler, and only the kernel knows. As long as the call isn't decided and signals aren't
blocked, the registers are therefore the `parked` ones: they pretend that the thread was interrupted in sigreturn(2).
Let go like this, the kernel decides as it would have decided for the real call. Either it makes the "interrupted call"
again, and sigreturn takes the first frame. Or it runs the handler and then lets the thread go on behind the call
instruction, where a `ret` follows: it finds, in a field of the first frame that the kernel ignores, the way to the
second (`skip`).

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
_RESTART_UNLESS_HANDLED = -514
_EINTR = -4
_RESTART_SYSCALL = 219
_SIGRETURN = 15
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
    parked: Registers
    """Registers with which the thread, let go, is at once what it was, signals or not."""


def build(
    place: int, registers: Registers, mask: int, state: bytes, gadgets: Gadgets, text: bytes
) -> Frame:
    """Both frames, at PLACE (a multiple of 64). TEXT is what stands before rip. Raises Unbuildable."""
    state = _sigframe_state(state)
    base = place + 8 * gadgets.pops
    second = base + 16 + 8 * gadgets.pops + gadgets.way
    floats = (second + 8 + _UCONTEXT + _ALIGN - 1) & -_ALIGN
    way_to_second = [_UC_FLAGS, 0, 0]  # uc_flags, uc_link, ss_sp: their values don't matter
    way_to_second[gadgets.pops] = gadgets.skip
    data = bytearray(floats - place + len(state))

    def put(at: int, piece: bytes) -> None:
        data[at - place : at - place + len(piece)] = piece

    again = resumable(registers, text)
    put(base, struct.pack("=Q", gadgets.restore) + _context(again, mask, floats, way_to_second))
    ended = Registers.from_buffer_copy(registers)
    if in_call(registers):
        ended.rax = _EINTR & _MASK64
    put(
        second,
        struct.pack("=Q", gadgets.restore) + _context(ended, mask, floats, [_UC_FLAGS, 0, 0]),
    )
    put(floats, state)
    if len(data) > ROOM:
        raise Unbuildable(f"its vector registers take {len(state)} bytes")
    return Frame(place, bytes(data), place, _parked(registers, base, gadgets))


def _parked(registers: Registers, base: int, gadgets: Gadgets) -> Registers:
    values = Registers.from_buffer_copy(registers)
    values.rsp = base + 8  # sigreturn looks for its frame 8 bytes below
    if not in_call(registers):
        values.rip, values.rax, values.orig_rax = gadgets.call, _SIGRETURN, _MASK64
        return values
    values.rip, values.orig_rax = gadgets.call + 2, _SIGRETURN
    if _signed(registers.rax) == _RESTART_REST:
        # The kernel would go on with the real call's rest, wherever rip is. With handlers both end alike.
        values.rax = _RESTART_UNLESS_HANDLED & _MASK64
    return values


def in_call(registers: Registers) -> bool:
    """Whether the thread was interrupted inside a system call that isn't decided yet."""
    undecided = {*_RESTART_FROM_START, _RESTART_REST}
    return _signed(registers.orig_rax) >= 0 and _signed(registers.rax) in undecided


def _context(registers: Registers, mask: int, floats: int, head: list[int]) -> bytes:
    """struct ucontext; HEAD are its first three words."""
    return (
        struct.pack("=3Q", *head)
        + struct.pack("=iIQ", _NO_SUCH_STACK_FLAGS, 0, 0)
        + _registers(registers, floats)
        + struct.pack("=Q", mask)
    )


def is_frame(data: bytes, gadgets: Gadgets) -> bool:
    """Whether DATA begins with frames that were built with these GADGETS."""
    base = 8 * gadgets.pops
    if len(data) < base + 32:
        return False
    restore, *head, flags = struct.unpack_from("=4QI", data, base)
    return restore == gadgets.restore and gadgets.skip in head and flags == _NO_SUCH_STACK_FLAGS


def resumable(registers: Registers, text: bytes) -> Registers:
    """REGISTERS of a stopped thread as it can load them by itself; TEXT is what stands before its rip.

    A call that would be made again is made again, from its beginning: what it waits for may come later than it asked
    for (the kernel would go on with the rest of a time limit; sigreturn(2) makes it forget that). When the kernel has
    gone on with a call once already, only the text tells which one it was; is that not as C libraries write it, the
    call ends with EINTR.
    """
    values = Registers.from_buffer_copy(registers)
    if not in_call(registers):
        return values
    number = int(values.orig_rax)
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
