"""Timers and clocks."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time
from collections.abc import Iterator

from conductor import claim, same

libc = ctypes.CDLL(None, use_errno=True)


class Itimerspec(ctypes.Structure):
    _fields_ = [("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2)]

    @property
    def remaining(self) -> float:
        return self.value[0] + self.value[1] / 1e9


class Sigevent(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_byte * 48),
    ]


def _spec(value: float, interval: float = 0) -> Itimerspec:
    def pair(seconds: float) -> ctypes.Array[ctypes.c_long]:
        return (ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9))

    return Itimerspec(pair(interval), pair(value))


@claim
def interval_timer() -> Iterator[None]:
    caught: list[int] = []
    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1000, 500)
    signal.setitimer(signal.ITIMER_VIRTUAL, 900, 0)
    while True:
        yield
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 1001, left
        same(interval, 500.0)
        # The kernel counts it in ticks, and rounds up.
        assert 0 < signal.getitimer(signal.ITIMER_VIRTUAL)[0] < 901
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while not caught:
            signal.pause()
        signal.setitimer(signal.ITIMER_REAL, 1000, 500)


@claim
def posix_timer() -> Iterator[None]:
    number = int(signal.SIGRTMIN) + 7
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    event = Sigevent(4711, number, 0)
    timer = ctypes.c_void_p()
    assert libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, ctypes.byref(_spec(2000, 70)), None) == 0
    while True:
        yield
        now = Itimerspec()
        assert libc.timer_gettime(timer, ctypes.byref(now)) == 0, "the timer is gone"
        assert 0 < now.remaining <= 2000, now.remaining
        same(now.interval[0], 70)
        assert libc.timer_settime(timer, 0, ctypes.byref(_spec(0.05, 70)), None) == 0
        same(signal.sigwait({number}), number)
        assert libc.timer_settime(timer, 0, ctypes.byref(_spec(2000, 70)), None) == 0


@claim
def timerfd() -> Iterator[None]:
    TFD_TIMER_ABSTIME = 1
    fds = [libc.timerfd_create(clock, 0) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_REALTIME)]
    due = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    while True:
        assert libc.timerfd_settime(fds[0], 0, ctypes.byref(_spec(3000, 60)), None) == 0
        at = time.time() + 4000
        assert libc.timerfd_settime(fds[1], TFD_TIMER_ABSTIME, ctypes.byref(_spec(at)), None) == 0
        assert libc.timerfd_settime(due, 0, ctypes.byref(_spec(0.001)), None) == 0
        select.select([due], [], [])
        yield
        for fd, most, interval in ((fds[0], 3000, 60), (fds[1], 4000, 0)):
            now = Itimerspec()
            assert libc.timerfd_gettime(fd, ctypes.byref(now)) == 0
            assert most - 600 < now.remaining <= most, now.remaining
            same(now.interval[0], interval)
        same(struct.unpack("Q", os.read(due, 8)), (1,), "the expirations")
        assert libc.timerfd_settime(fds[0], 0, ctypes.byref(_spec(0.01)), None) == 0
        assert select.select([fds[0]], [], [], 60)[0]


@claim
def clocks_go_on() -> Iterator[None]:
    clocks = (
        time.CLOCK_MONOTONIC,
        time.CLOCK_BOOTTIME,
        time.CLOCK_REALTIME,
        time.CLOCK_PROCESS_CPUTIME_ID,
    )
    while True:
        before = [time.clock_gettime(clock) for clock in clocks[:3]]
        yield
        after = [time.clock_gettime(clock) for clock in clocks[:3]]
        for name, old, new in zip(
            ("monotonic", "boottime", "realtime"), before, after, strict=True
        ):
            assert old <= new < old + 3600, f"{name}: {old} and then {new}"
