"""What in a container's processes CRIU cannot dump, found before anything is frozen.

A failed dump leaves the container running, but it stood still for nothing, and CRIU's log has to be read to see why.
What is looked at here are the well-known reasons, all from /proc and sock_diag(7):

- descriptors of kinds that CRIU doesn't know: io_uring, perf events, KVM, BPF; block and most character devices;
- pipes of packets and eventfd semaphores;
- files and terminals that were opened outside the container, or bound into it from a host's terminal;
- connected Unix sockets whose other end no process of the container holds;
- tracers: a process has only one, and CRIU would have to be it;
- limits that CRIU may not read.

Nothing is stopped meanwhile, so what is found is a photograph: CRIU has the last word.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime import mountinfo
from runtime.mountinfo import Mount
from runtime.network.plug import inside
from runtime.proc import status_field

_ANONYMOUS = {
    "anon_inode:[io_uring]": (
        "an io_uring",
        "switch it off in the program (for instance UV_USE_IO_URING=0), or block it with seccomp",
    ),
    "anon_inode:[perf_event]": ("a perf event", "end the profiler"),
    "anon_inode:kvm": ("a KVM handle", ""),
    "anon_inode:bpf-prog": ("a BPF program", ""),
    "anon_inode:[fscontext]": ("a file system being configured", ""),
    "anon_inode:seccomp notify": ("a seccomp listener", ""),
    "anon_inode:[userfaultfd]": ("a userfaultfd", ""),
}
_TERMINALS = range(136, 144)  # Unix98 pty slaves (admin-guide/devices.txt of the kernel)
# Character devices that CRIU can carry: memory devices (null, zero, random, ...), terminals, /dev/net/tun.
_MEM, _TTY, _TTYAUX, _TUN = 1, 4, 5, (10, 200)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """what: the process; why: what it has; hint: what to do about it, or ""."""

    what: str
    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Descriptor:
    pid: int
    fd: str
    target: str


def obstacles(pids: Iterable[int]) -> list[Obstacle]:
    """Everything in the processes PIDS of one container that stands in the way of a dump. One that ends meanwhile is
    left out."""
    alive = list(pids)
    found: list[Obstacle] = []
    everything: list[_Descriptor] = []
    mounts: dict[int, Mount] = {}
    for pid in alive:
        # Of all: a process that changed its root is told only of the mounts below it.
        with contextlib.suppress(OSError):
            mounts |= {mount.id: mount for mount in mountinfo.mounts(pid)}
    for pid in alive:
        try:
            mine = list(_descriptors(pid))
            found += _traced(pid)
            found += _limits(pid)
        except OSError:
            continue
        everything += mine
        for one in mine:
            found += _descriptor(one, mounts)
    return found + _connections(everything)


def _title(pid: int) -> str:
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"


def _traced(pid: int) -> list[Obstacle]:
    tracer = int(status_field(pid, "TracerPid"))
    if not tracer:
        return []
    why = f"it is being traced by {_title(tracer)}"
    return [Obstacle(_title(pid), why, "end strace or gdb on it")]


def _limits(pid: int) -> list[Obstacle]:
    """prlimit(2): of a process of another user only with CAP_SYS_RESOURCE in its user namespace."""
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:
        return [
            Obstacle(
                _title(pid),
                "CRIU may not read its limits: it is another user's, and this host lacks CAP_SYS_RESOURCE",
                "run it in a user namespace, which is the default, or give ckpt CAP_SYS_RESOURCE",
            )
        ]
    return []


# ---- descriptors


def _descriptors(pid: int) -> Iterator[_Descriptor]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield _Descriptor(pid, fd, os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue


def _descriptor(one: _Descriptor, mounts: Mapping[int, Mount]) -> list[Obstacle]:
    for start, (name, hint) in _ANONYMOUS.items():
        if one.target.startswith(start):
            why = f"descriptor {one.fd} is {name}, which CRIU cannot dump"
            return [Obstacle(_title(one.pid), why, hint)]
    if one.target.startswith(("pipe:", "anon_inode:[eventfd]")):
        return _lossy(one)
    if not one.target.startswith("/") or one.target.startswith("/memfd:"):
        return []
    queues = {mount.device for mount in mounts.values() if mount.kind == "mqueue"}
    try:
        info = os.stat(f"/proc/{one.pid}/fd/{one.fd}")
        mount = mounts.get(_mount_id(one))
    except OSError:
        return []
    if _is_terminal(info):
        if mount is None or (mount.kind == "devpts" and mount.root != "/"):
            return [
                Obstacle(
                    _title(one.pid),
                    f"descriptor {one.fd} is a terminal from outside the container ({one.target})",
                    "start it with `ckpt run -t` or `ckpt exec -t`, whose terminals live inside",
                )
            ]
        return []
    if mount is None and info.st_dev in queues:
        return []  # a POSIX message queue, on a mount of the kernel's own: queues.py carries it
    if mount is None:
        return [
            Obstacle(
                _title(one.pid),
                f"descriptor {one.fd} is a file from outside the container ({one.target})",
                "start it without inherited descriptors",
            )
        ]
    if not _known_device(info):
        why = f"descriptor {one.fd} is the device {one.target}, which CRIU cannot dump"
        return [Obstacle(_title(one.pid), why)]
    return []


def _lossy(one: _Descriptor) -> list[Obstacle]:
    """What CRIU refuses, or would bring back as something else."""
    try:
        text = Path(f"/proc/{one.pid}/fdinfo/{one.fd}").read_text()
    except OSError:
        return []
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    why = ""
    if one.target.startswith("pipe:") and int(fields.get("flags", "0"), 8) & os.O_DIRECT:
        why = "a pipe of packets (O_DIRECT), which CRIU cannot dump"
    if int(fields.get("eventfd-semaphore", "0")):
        why = "an eventfd that counts as a semaphore (EFD_SEMAPHORE), which CRIU would forget"
    return [Obstacle(_title(one.pid), f"descriptor {one.fd} is {why}")] if why else []


def _mount_id(one: _Descriptor) -> int:
    for line in Path(f"/proc/{one.pid}/fdinfo/{one.fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    return -1


def _is_terminal(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and os.major(info.st_rdev) in _TERMINALS


def _known_device(info: os.stat_result) -> bool:
    if stat.S_ISBLK(info.st_mode):
        return False
    if not stat.S_ISCHR(info.st_mode):
        return True
    number = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return number[0] in (_MEM, _TTY, _TTYAUX) or number == _TUN


# ---- connections of Unix sockets

_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr, netlink(7)
_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req, sock_diag(7)
_ANSWER = struct.Struct("=BBBBIII")  # struct unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")


def _connections(descriptors: list[_Descriptor]) -> list[Obstacle]:
    held: dict[int, _Descriptor] = {}
    for one in descriptors:
        if one.target.startswith("socket:["):
            held.setdefault(int(one.target[8:-1]), one)
    found = []
    for home in {_network(one.pid): one.pid for one in held.values()}.values():
        for inode, peer in _unix_peers(home).items():
            # A peer without an inode was not accepted yet; it is in the listener's queue, which CRIU sees.
            if inode in held and peer and peer not in held:
                one = held[inode]
                found.append(
                    Obstacle(
                        _title(one.pid),
                        f"descriptor {one.fd} is a Unix socket connected to a process outside the container",
                        "close the connection first; a volume with a socket of the host makes such",
                    )
                )
    return found


def _network(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _unix_peers(pid: int) -> dict[int, int]:
    """Inode → inode of the peer, of all connected Unix sockets of the network namespace of PID."""
    found: dict[int, int] = {}
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        with (
            inside(namespace),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as asking,  # NETLINK_SOCK_DIAG
        ):
            request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_PEER, 0, 0)
            size = _HEADER.size + len(request)
            asking.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
            while _read_peers(asking.recv(1 << 16), found):
                pass
    finally:
        os.close(namespace)
    return found


def _read_peers(data: bytes, found: dict[int, int]) -> bool:
    """Take in one datagram of answers; whether more will come."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return False
        body = at + _HEADER.size
        inode = _ANSWER.unpack_from(data, body)[4]
        attribute = body + _ANSWER.size
        while attribute + _ATTRIBUTE.size <= at + length:
            size, name = _ATTRIBUTE.unpack_from(data, attribute)
            if size < _ATTRIBUTE.size:
                break
            if name == _UNIX_DIAG_PEER:
                (found[inode],) = struct.unpack_from("=I", data, attribute + _ATTRIBUTE.size)
            attribute += (size + 3) & ~3
        at += (length + 3) & ~3
    return True
