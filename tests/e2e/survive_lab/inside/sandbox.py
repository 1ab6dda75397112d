"""What surrounds the processes: names, mounts, limits, filters."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator

from conductor import claim, same
from processes import Helper

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


@claim
def hostname() -> Iterator[None]:
    wanted = socket.gethostname()
    with open("/etc/hostname") as file:
        same(file.read().strip(), wanted)
    while True:
        yield
        same(socket.gethostname(), wanted)
        same(os.uname().nodename, wanted)


@claim
def mounts() -> Iterator[None]:
    """Mount points with their file systems and options, in order."""

    def look() -> list[str]:
        found = []
        with open("/proc/self/mountinfo") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                fields = before.split()
                kind = after.split()[0]
                point, options = fields[4], fields[5]
                ours = after.split()[2] if kind in ("tmpfs", "devpts", "proc", "mqueue") else ""
                found.append(f"{point} {options} {kind} {ours}")
        return sorted(found)

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def masked_and_read_only_paths() -> Iterator[None]:
    def look() -> list[object]:
        found: list[object] = []
        for path in ("/proc/kcore", "/proc/sysrq-trigger", "/proc/sys/kernel/panic"):
            try:
                with open(path, "ab") as file:
                    file.write(b"")
                found.append("writable")
            except OSError as error:
                found.append(error.errno)
        return found

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def cgroup_of_its_own() -> Iterator[None]:
    def look() -> list[str]:
        with open("/proc/self/cgroup") as file:
            return sorted(line.split(":", 1)[1] for line in file)

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def containers_seccomp_filter() -> Iterator[None]:
    def look() -> tuple[object, ...]:
        with open("/proc/self/status") as file:
            mode = next(line.split()[1] for line in file if line.startswith("Seccomp:"))
        libc.unshare(0x10000000)  # CLONE_NEWUSER
        first = ctypes.get_errno()
        libc.syscall(248 if os.uname().machine == "x86_64" else 217, 0, 0, 0, 0, 0)  # add_key
        return mode, first, ctypes.get_errno()

    wanted = look()
    same(wanted, ("2", 1, 1))
    while True:
        yield
        same(look(), wanted)


@claim
def own_seccomp_filter() -> Iterator[None]:
    """A filter that a program installs for itself: getppid() fails with 42."""
    number = 110 if os.uname().machine == "x86_64" else 173

    def install() -> None:
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

        def instruction(code: int, true: int, false: int, value: int) -> int:
            return code | true << 16 | false << 24 | value << 32

        code = (ctypes.c_uint64 * 4)(
            instruction(0x20, 0, 0, 0),  # the call's number
            instruction(0x15, 0, 1, number),
            instruction(0x06, 0, 0, 0x00050000 | 42),  # SECCOMP_RET_ERRNO
            instruction(0x06, 0, 0, 0x7FFF0000),
        )
        program = Program(4, ctypes.addressof(code))
        assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)) == 0

    def tell() -> tuple[int, int]:
        return libc.syscall(number), ctypes.get_errno()

    helper = Helper(first=install, tell=tell)
    same(helper.ask(), (-1, 42))
    while True:
        yield
        same(helper.ask(), (-1, 42))


@claim
def user_namespace_ids() -> Iterator[None]:
    """As seen from inside, the map of a range is the same wherever the range lies on the host."""

    def look() -> list[object]:
        found: list[object] = []
        for name in ("uid_map", "gid_map", "setgroups"):
            with open(f"/proc/self/{name}") as file:
                found.append([line.split()[::2] for line in file])
        s = os.stat("/etc/passwd")
        found.append((s.st_uid, s.st_gid, os.stat("/tmp").st_uid))
        return found

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def namespaced_sysctls() -> Iterator[None]:
    paths = (
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/net/core/somaxconn",
    )

    def look() -> list[str]:
        found = []
        for path in paths:
            with open(path) as file:
                found.append(file.read())
        return found

    wanted = look()
    while True:
        yield
        same(look(), wanted)
