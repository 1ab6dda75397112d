"""Two system calls made by another process: it opens a userfaultfd, we take a duplicate, it closes its own.

A userfaultfd stands for the address space of whoever opened it, so the process has to open it itself. The story:

    running  its text is searched for three instructions, its descriptors for what an earlier, killed injector left
    seize    PTRACE_SEIZE and PTRACE_INTERRUPT stop the main thread only; seccomp is suspended for it
    save     registers, vector registers, signal mask; a frame with them goes below its stack (frame.py)
    call     userfaultfd(2); pidfd_getfd(2) here; close(2)
    restore  mask, registers, the bytes where the frame was; detach

The other threads run on. Signals are blocked meanwhile, so that none is delivered between two calls; they wait.

A thread that was interrupted inside a system call goes on with it: its registers say -ERESTART... and which call it
was, and the kernel, when it lets the thread go, does what these say. During the injected calls orig_rax is -1: not in
a system call, nothing to make again.

If we are killed, at any instruction: before the first SETREGS the thread is as it was. After it the thread runs on to
its frame, perhaps through the call, and is as it was (frame.py tells how, signals included). But what userfaultfd(2)
opened then stays open, unused and close-on-exec; the next injection into that process finds it and closes it.

Refused, since nothing of this may be tried and then found out: 32-bit code, shadow stacks, a main thread that has
ended, is stopped, is traced, doesn't stop, or is in the middle of a restartable sequence (rseq(2)), which the kernel
would forget on the way; programs without the three instructions.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from

from runtime import proc, syscalls
from runtime.tracking import frame, gadgets, ptrace, uffd
from runtime.tracking.vmas import Vma, mappings

FLAGS = uffd.USER_MODE_ONLY | os.O_CLOEXEC | os.O_NONBLOCK

_CLOSE = 3
_ALL_SIGNALS = (1 << 64) - 1
_CODE64 = 0x33
_RED_ZONE = 128
_BELOW = 32768
"""Bytes kept between the stack pointer and the frame: what the thread will use soon isn't made private copies of."""
_TEXT = 32  # bytes before rip that tell which system call it was
_STOP_SECONDS = 0.05
_LONGEST_SECONDS = 10.0
_STRAY_SECONDS = 0.02
_BUSY_TRIES = 20
_SYSCALL_STOP = signal.SIGTRAP | 0x80


class Refused(Exception):
    """The process was left as it was; why, in one line. AGAIN: another time it may work."""

    def __init__(self, why: str, *, again: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.again = again


class Stuck(Refused):
    """It didn't stop, and is still seized: only our own end lets go of it."""


class Gone(Exception):
    """The process ended."""


@dataclass(slots=True)
class Timing:
    stopped_ns: int = 0


def open_userfaultfd(pid: int, timing: Timing | None = None) -> int:
    """A new userfaultfd for the memory of PID, open here and no longer there. Raises Refused, Gone."""
    close_strays(pid)
    with _prepared(pid) as process, process.borrowable(timing) as thread:
        return _open(process, thread)


def _open(process: _Process, thread: _Thread) -> int:
    with thread.borrowed():
        there = thread.call(uffd.NR_USERFAULTFD, FLAGS)
        if there < 0:
            raise Refused(f"userfaultfd there: {os.strerror(-there)}")
        try:
            return syscalls.pidfd_getfd(process.pidfd, there)
        except OSError as error:
            raise Refused(f"its descriptor can't be had: {error.strerror}") from error
        finally:
            thread.call(_CLOSE, there)


def close_strays(pid: int) -> int:
    """Close what injectors that were killed left open in PID; how many. Raises Refused, Gone.

    A userfaultfd that was opened and isn't set up is one of ours, or the program is just about to set it up: so the
    same ones must be there at a second look.
    """
    first = strays(pid)
    if not first:
        return 0
    time.sleep(_STRAY_SECONDS)
    again = first & strays(pid)
    if not again:
        return 0
    with _prepared(pid) as process, process.borrowable(None) as thread, thread.borrowed():
        for number in again & strays(pid):
            thread.call(_CLOSE, number)
    return len(again)


_NEVER_SET_UP = re.compile(r"^API:\s+aa:0:", re.M)
_STRAY_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


def strays(pid: int) -> set[int]:
    """Descriptors of PID that look like those an injection leaves when it is cut off."""
    found = set()
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{name}") != "anon_inode:[userfaultfd]":
                    continue
                info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
                flags = int(re.search(r"^flags:\s+(\d+)", info, re.M)[1], 8)  # type: ignore[index]
                if _NEVER_SET_UP.search(info) and flags & _STRAY_FLAGS == _STRAY_FLAGS:
                    found.add(int(name))
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(str(pid)) from None
    return found


class _Process:
    """A process about to be stopped: all that can be found out while it runs."""

    def __init__(
        self, pid: int, pidfd: int, memory: int, found: gadgets.Gadgets, stack: Vma, options: int
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.memory = memory
        self.gadgets = found
        self.stack = stack
        self.options = options

    @contextlib.contextmanager
    def borrowable(self, timing: Timing | None) -> Iterator[_Thread]:
        """The main thread stands still where it may be borrowed. Raises Refused, Gone."""
        why = ""
        for _ in range(_BUSY_TRIES):
            with self.stopped(timing) as thread:
                why = thread.busy()
                if not why:
                    yield thread
                    return
            time.sleep(0.001)
        raise Refused(f"{why}, each time", again=True)

    @contextlib.contextmanager
    def stopped(self, timing: Timing | None) -> Iterator[_Thread]:
        """The main thread stands still. Raises Refused, Gone."""
        try:
            ptrace.seize(self.pid, self.options)
        except ProcessLookupError:
            raise Gone(str(self.pid)) from None
        except OSError as error:
            raise Refused(f"it can't be stopped: {error.strerror} (is it traced?)") from error
        ptrace.interrupt(self.pid)
        _wait_stop(self.pid)
        begun = time.perf_counter_ns()
        try:
            yield _Thread(self)
        except ProcessLookupError:
            raise Gone(str(self.pid)) from None  # killed meanwhile
        finally:
            with contextlib.suppress(ProcessLookupError):
                ptrace.detach(self.pid)
            if timing is not None:
                timing.stopped_ns = time.perf_counter_ns() - begun


@contextlib.contextmanager
def _prepared(pid: int) -> Iterator[_Process]:
    with contextlib.ExitStack() as stack:
        try:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, memory)
            options = _options(pid)
            vmas = mappings(pid)
        except (FileNotFoundError, ProcessLookupError):
            raise Gone(str(pid)) from None
        except PermissionError as error:
            raise Refused(f"its memory can't be opened: {error.strerror}") from error
        if not vmas:
            raise Refused("it has no memory")
        found = gadgets.find(memory, vmas)
        if found is None:
            raise Refused("its text lacks the instructions that a call could be made with")
        lowest = next((vma for vma in vmas if vma.name == "[stack]"), None)
        if lowest is None:
            raise Refused("it has no stack of its own")
        yield _Process(pid, pidfd, memory, found, lowest, options)


def _options(pid: int) -> int:
    """How to seize it. Raises Refused for what can be seen from outside."""
    fields = {}
    for line in Path(f"/proc/{pid}/task/{pid}/status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    state = fields.get("State", "?")[:1]
    if state in "ZX":
        raise Refused("its main thread has ended")
    if state in "Tt":
        raise Refused("it is stopped or traced", again=True)
    if state == "D":
        raise Refused("its main thread can't be interrupted now", again=True)
    if fields.get("TracerPid", "0") != "0":
        raise Refused(f"it is traced by {fields['TracerPid']}", again=True)
    if "shstk" in fields.get("x86_Thread_features", ""):
        raise Refused("it has a shadow stack")
    if fields.get("Seccomp") == "1":
        raise Refused("it is in strict seccomp mode: a call would kill it should we be killed")
    filtered = fields.get("Seccomp", "0") != "0"
    return ptrace.O_TRACESYSGOOD | (ptrace.O_SUSPEND_SECCOMP if filtered else 0)


def _wait_stop(pid: int) -> None:
    """Until the thread stands, for a moment only: one that sleeps uninterruptibly would make us wait with it."""
    begun = time.monotonic()
    while True:
        stop = _stop(pid, wait=False)
        if stop is not None:
            if not stop.asked_for:
                # A signal was on its way to it: it stays on its way.
                ptrace.resume(pid, stop.signal)
                continue
            if stop.signal != signal.SIGTRAP:
                ptrace.detach(pid)
                raise Refused("it is stopped", again=True)
            return
        late = time.monotonic() - begun
        # One that waits for a processor stops as soon as it gets it; one that sleeps uninterruptibly may never.
        if late > _STOP_SECONDS and (late > _LONGEST_SECONDS or proc.state(pid) == "D"):
            raise Stuck("its main thread doesn't stop", again=True)
        os.sched_yield()


def _stop(pid: int, *, wait: bool) -> ptrace.Stop | None:
    """As ptrace.stop_of(), but raises Gone."""
    try:
        return ptrace.stop_of(pid, wait=wait)
    except ProcessLookupError:
        raise Gone(str(pid)) from None


class _Thread:
    """A stopped main thread."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._tid = process.pid
        self._registers = ptrace.registers(self._tid)
        self._frame: frame.Frame | None = None
        if self._registers.cs != _CODE64:
            raise Refused("it runs 32-bit code")

    def busy(self) -> str:
        """Why it has to run on for a moment first; "" when it can be borrowed."""
        if self._in_sequence():
            return "its main thread is in a restartable sequence"
        return ""

    def _in_sequence(self) -> bool:
        """Whether it is inside of a critical section of rseq(2), which ends when it runs anywhere else."""
        try:
            area = ptrace.rseq_area(self._tid)
        except OSError:
            return False  # before Linux 5.13; glibc uses no critical sections
        if not area:
            return False
        try:
            section = unpack_from("=Q", os.pread(self._process.memory, 8, area + 8))[0]
            if not section:
                return False
            start, length = unpack_from("=2Q", os.pread(self._process.memory, 16, section + 8))
        except OSError:
            return False
        return bool(0 <= self._registers.rip - start < length)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Calls can be made; afterwards the thread is what it was."""
        tid, memory = self._tid, self._process.memory
        mask = ptrace.signal_mask(tid)
        place = self._place()
        text = b""
        with contextlib.suppress(OSError):  # nothing needs to be mapped before rip
            text = os.pread(memory, _TEXT, self._registers.rip - _TEXT)
        state = ptrace.extended_state(tid)
        try:
            made = frame.build(place, self._registers, mask, state, self._process.gadgets, text)
        except frame.Unbuildable as error:
            raise Refused(str(error)) from error
        before = os.pread(memory, len(made.data), made.address)
        if len(before) != len(made.data):
            raise Refused("its stack can't be read")
        os.pwrite(memory, made.data, made.address)
        self._frame = made
        # Between any two of these requests we may be killed: hence their order, and the parked registers.
        ptrace.set_registers(tid, made.parked)
        ptrace.set_signal_mask(tid, _ALL_SIGNALS)
        try:
            yield
        finally:
            ptrace.set_registers(tid, made.parked)
            ptrace.set_signal_mask(tid, mask)
            ptrace.set_registers(tid, self._registers)
            os.pwrite(memory, before, made.address)
            self._frame = None

    def call(self, number: int, argument: int) -> int:
        """Make a system call with one argument in the thread; its result, negative errno included. Raises Gone."""
        assert self._frame is not None
        tid = self._tid
        values = ptrace.Registers.from_buffer_copy(self._registers)
        values.rip = self._process.gadgets.call
        values.rsp = self._frame.stack
        values.rax, values.rdi = number, argument
        values.orig_rax = (1 << 64) - 1
        values.eflags = self._registers.eflags & ~0x100  # no single steps of its own
        ptrace.set_registers(tid, values)
        self._run_to_syscall_stop()  # it begins
        self._run_to_syscall_stop()  # it is done
        result = int(ptrace.registers(tid).rax)
        return result - (1 << 64) if result >> 63 else result

    def _run_to_syscall_stop(self) -> None:
        """No time limit here: now that the registers are borrowed, only the thread's own end may end the waiting."""
        number = 0
        while True:
            ptrace.resume_to_syscall(self._tid, number)
            stop = _stop(self._tid, wait=True)
            assert stop is not None
            if stop.signal == _SYSCALL_STOP:
                return
            # SIGSTOP can't be blocked; a stop of the whole process passes us by and takes effect when we let go.
            number = 0 if stop.event else stop.signal

    def _place(self) -> int:
        """Where the frame goes: stack that is not in use, and that no other thread uses. Raises Refused."""
        stack = self._process.stack
        rsp = int(self._registers.rsp)
        if stack.start <= rsp < stack.end:
            place = (rsp - _RED_ZONE - _BELOW - frame.ROOM) & -64
            if place - frame.ROOM < stack.start:
                # Nearer then; a signal handler that runs in a thread left alone needs some stack below, as well.
                place = (rsp - _RED_ZONE - frame.ROOM) & -64
            if place - frame.ROOM >= stack.start:
                return place
            raise Refused("its stack is used to the end", again=True)
        # It runs on another stack (Go, coroutines): the main one must be unused where the frame goes.
        if self._unused():
            return stack.start + frame.ROOM
        raise Refused("it runs on a stack that isn't its main one, which is used to the end")

    def _unused(self) -> bool:
        """Whether the lowest part of the main stack holds nothing, or what we left there when we were killed."""
        stack, room = self._process.stack, frame.ROOM
        if stack.start + 3 * room > stack.end:
            return False
        data = os.pread(self._process.memory, 3 * room, stack.start)
        middle = data[room : 2 * room]
        if any(data[:room]) or any(data[2 * room :]):
            return False
        if not any(middle):
            return True
        if not frame.is_frame(middle, self._process.gadgets):
            return False
        os.pwrite(self._process.memory, bytes(room), stack.start + room)
        return True
