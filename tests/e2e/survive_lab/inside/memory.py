"""Memory: private, shared, of files, of memfd, locked."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import re
from collections.abc import Iterator

from conductor import claim, same
from processes import Helper

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
PAGE = mmap.PAGESIZE


def digest(data: object) -> str:
    return hashlib.sha256(data).hexdigest()  # type: ignore[arg-type]


@claim
def anonymous_memory() -> Iterator[None]:
    area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Random, zero, and never touched pages in turn.
    for start in range(0, 6 << 20, 3 << 16):
        area[start : start + (1 << 16)] = os.urandom(1 << 16)
        area[start + (1 << 16) : start + (2 << 16)] = bytes(1 << 16)
    wanted = digest(area)
    while True:
        yield
        same(digest(area), wanted)
        area[:100] = os.urandom(100)
        wanted = digest(area)


@claim
def shared_memory_stays_shared() -> Iterator[None]:
    area = mmap.mmap(-1, 1 << 20)
    area[:5] = b"hello"
    helper = Helper(tell=lambda: _answer(area))
    while True:
        yield
        same(area[:5], b"hello")
        area[10:14] = b"ping"
        same(helper.ask(), b"ping")
        same(area[20:24], b"pong")
        area[20:24] = bytes(4)


def _answer(area: mmap.mmap) -> bytes:
    seen = area[10:14]
    area[20:24] = b"pong"
    return seen


@claim
def private_memory_after_fork_is_separate() -> Iterator[None]:
    area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:6] = b"common"

    def change() -> None:
        area[:6] = b"childs"

    helper = Helper(first=change, tell=lambda: area[:6])
    plain = Helper(tell=lambda: area[:6])
    while True:
        yield
        same((area[:6], helper.ask(), plain.ask()), (b"common", b"childs", b"common"))


@claim
def mapped_files() -> Iterator[None]:
    shared = os.open("/tmp/mapped-shared", os.O_RDWR | os.O_CREAT, 0o600)
    private = os.open("/tmp/mapped-private", os.O_RDWR | os.O_CREAT, 0o600)
    for fd in (shared, private):
        os.ftruncate(fd, 16 * PAGE)
    first = mmap.mmap(shared, 16 * PAGE)
    second = mmap.mmap(private, 16 * PAGE, flags=mmap.MAP_PRIVATE)
    os.close(private)
    count = 0
    while True:
        count += 1
        first[:9] = b"shared %2d" % count
        second[:10] = b"private %2d" % count
        yield
        same(first[:9], b"shared %2d" % count)
        same(second[:10], b"private %2d" % count)
        same(os.pread(shared, 9, 0), b"shared %2d" % count, "the file")
        with open("/tmp/mapped-private", "rb") as file:
            same(file.read(10), bytes(10), "the file below a private mapping")


@claim
def mapping_of_a_removed_file() -> Iterator[None]:
    fd = os.open("/tmp/mapped-removed", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4 * PAGE)
    area = mmap.mmap(fd, 4 * PAGE)
    os.unlink("/tmp/mapped-removed")
    os.close(fd)
    area[:4] = b"gone"
    while True:
        yield
        same(area[:4], b"gone")


@claim
def memory_protection_and_layout() -> Iterator[None]:
    """Every mapping has its place, its rights and its flags."""
    area = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.mprotect(ctypes.c_void_p(start + 16 * PAGE), 16 * PAGE, mmap.PROT_READ) == 0
    area.madvise(mmap.MADV_DONTFORK, 32 * PAGE, 8 * PAGE)
    area.madvise(mmap.MADV_NOHUGEPAGE, 0, 8 * PAGE)
    guard = libc.mmap(None, 4 * PAGE, 0, 0x22, -1, 0)
    assert guard

    def look() -> list[str]:
        found = []
        with open("/proc/self/smaps") as file:
            for line in file:
                match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
                if match:
                    here = int(match[1], 16)
                    mine = start <= here < start + 64 * PAGE or here == guard
                    where = match[0]
                elif line.startswith("VmFlags:") and mine:
                    flags = sorted(set(line.split()[1:]) - {"sd"})
                    found.append(f"{where} {' '.join(flags)}")
        return found

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def locked_memory() -> Iterator[None]:
    area = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.mlock(ctypes.c_void_p(start), 4 * PAGE) == 0, os.strerror(ctypes.get_errno())

    def locked() -> str:
        with open("/proc/self/status") as file:
            return next(line for line in file if line.startswith("VmLck"))

    wanted = locked()
    assert " 0 kB" not in wanted
    while True:
        yield
        same(locked(), wanted)


@claim
def memfd_with_seals() -> Iterator[None]:
    F_ADD_SEALS, F_GET_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1034, 2, 4
    fd = os.memfd_create("survivor", os.MFD_ALLOW_SEALING)
    os.write(fd, b"sealed contents")
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
    area = mmap.mmap(fd, 15)
    while True:
        yield
        same(os.pread(fd, 100, 0), b"sealed contents")
        same(fcntl.fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW)
        same(area[:6], b"sealed")
        assert "survivor" in os.readlink(f"/proc/self/fd/{fd}")


@claim
def deep_stack() -> Iterator[None]:
    """A call that is many frames deep returns through all of them."""

    def down(level: int) -> Iterator[int]:
        if level:
            for value in down(level - 1):
                yield value + 1
        else:
            while True:
                yield 0

    deep = down(300)
    while True:
        yield
        same(next(deep), 300)
