"""ptrace(2) on x86-64: constants and thin wrappers, nothing else. All calls belong to the thread that seized.

A stop is looked at (WNOWAIT), never taken. Taking the report of a signal takes the signal with it, until the tracer
says what is to become of it; a tracer that is killed in between has made it vanish (wait_task_stopped in
kernel/exit.c).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

CONT = 7
GETREGS = 12
SETREGS = 13
DETACH = 17
SYSCALL = 24
SETOPTIONS = 0x4200
GETREGSET = 0x4204
SEIZE = 0x4206
INTERRUPT = 0x4207
GETSIGMASK = 0x420A
SETSIGMASK = 0x420B
GET_RSEQ_CONFIGURATION = 0x420F

O_TRACESYSGOOD = 1
O_SUSPEND_SECCOMP = 1 << 21
_EVENT_STOP = 128
_WALL = 0x40000000

_NT_X86_XSTATE = 0x202
_MOST_XSTATE = 32768

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

# fmt: off
_NAMES = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
]
# fmt: on


class Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [(name, ctypes.c_uint64) for name in _NAMES]


def _call(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    result: int = _ptrace(request, tid, address, data)
    number = ctypes.get_errno()
    if result == -1 and number:
        raise OSError(number, os.strerror(number), f"ptrace {request:#x} of {tid}")
    return result


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a thread stands: a signal that is to be delivered, or an event with its number."""

    signal: int
    event: int

    @property
    def asked_for(self) -> bool:
        """By interrupt(), or because its process is stopped: then `signal` isn't SIGTRAP."""
        return self.event == _EVENT_STOP


def stop_of(tid: int, *, wait: bool) -> Stop | None:
    """How a seized thread stands. With WAIT it is waited for, else None says that it doesn't stand yet.

    Raises ProcessLookupError when it has ended.
    """
    options = os.WEXITED | os.WSTOPPED | os.WNOWAIT | _WALL | (0 if wait else os.WNOHANG)
    try:
        found = os.waitid(os.P_PID, tid, options)
        if found is None:
            return None
        if found.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
            return Stop(found.si_status & 0xFF, found.si_status >> 8)
        os.waitpid(tid, _WALL)  # its end is for its parent, which hears of it when we have
    except ChildProcessError:
        pass
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"thread {tid}")


def seize(tid: int, options: int) -> None:
    _call(SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    _call(INTERRUPT, tid)


def resume_to_syscall(tid: int, number: int = 0) -> None:
    """On to the next beginning or end of a system call, with signal NUMBER delivered."""
    _call(SYSCALL, tid, 0, number)


def resume(tid: int, number: int = 0) -> None:
    _call(CONT, tid, 0, number)


def detach(tid: int, number: int = 0) -> None:
    """It runs on, with signal NUMBER delivered."""
    _call(DETACH, tid, 0, number)


def registers(tid: int) -> Registers:
    found = Registers()
    _call(GETREGS, tid, 0, ctypes.addressof(found))
    return found


def set_registers(tid: int, values: Registers) -> None:
    _call(SETREGS, tid, 0, ctypes.addressof(values))


def signal_mask(tid: int) -> int:
    mask = ctypes.c_uint64()
    _call(GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    value = ctypes.c_uint64(mask)
    _call(SETSIGMASK, tid, 8, ctypes.addressof(value))


def extended_state(tid: int) -> bytes:
    """Floating-point and vector registers in XSAVE's standard format."""
    buffer = ctypes.create_string_buffer(_MOST_XSTATE)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), _MOST_XSTATE)
    _call(GETREGSET, tid, _NT_X86_XSTATE, ctypes.addressof(vector))
    return buffer.raw[: vector[1]]


def rseq_area(tid: int) -> int:
    """Address of the thread's struct rseq; 0 without one. Raises OSError on kernels before 5.13."""
    raw = ctypes.create_string_buffer(24)
    _call(GET_RSEQ_CONFIGURATION, tid, 24, ctypes.addressof(raw))
    return int(struct.unpack_from("=Q", raw.raw)[0])
