"""POSIX message queues (mq_overview(7)), which CRIU neither dumps nor restores.

Two things are in its way, and each is led around:

- A queue is a file in /dev/mqueue, and CRIU refuses that file system unless it is empty. So the mount is declared an
  outside one. At the restore, once the new ipc namespace is there (hook `setup-namespaces`), we mount a new one from
  within it at the place where CRIU expects the outside mount, and make the queues in it.
- A descriptor from mq_open(3) lies on the kernel's own mount of that file system, which no process sees, and CRIU
  refuses it. So it is declared an outside file; and on the way to the restore its entry is rewritten into an ordinary
  file of /dev/mqueue. Opened by that name it is the very same thing.

Messages can only be read by taking them out. In the frozen window nobody watches, so all are taken and put back, in
the same order. Two states would show: a full queue, whose blocked senders the kernel lets in as soon as there is room,
and a queue with a registration for notification. They are refused, as is a removed queue that is still open.

All this costs nothing where there are no queues. One that is made between the look and the freeze makes the dump fail,
and the container runs on.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import mountinfo, syscalls
from runtime.errors import BadInput, Unsupported
from runtime.programs import run

KEY = "mqueue"
"""The outside mount's key."""
_STATE = re.compile(r"QSIZE:\d+\s+NOTIFY:-?\d+\s+SIGNO:\d+\s+NOTIFY_PID:(\d+)")
_MOST_MESSAGES = 65536  # HARD_MSGMAX, ipc/mqueue.c
_PRIORITIES = 32768  # MQ_PRIO_MAX
_MOST_BYTES = 16 << 20  # HARD_MSGSIZEMAX

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct mq_attr, mq_getattr(3)."""

    _fields_ = [
        ("flags", ctypes.c_long),
        ("most", ctypes.c_long),
        ("size", ctypes.c_long),
        ("held", ctypes.c_long),
        ("reserved", ctypes.c_long * 4),
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """point, mount: where the container has /dev/mqueue, and that mount's id. files: CRIU's key of an open queue, and
    the queue's name."""

    point: str
    mount: int
    names: tuple[str, ...]
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue. uid, gid: as the container has them. messages: (priority, base64), first to be received first."""

    name: str
    mode: int
    uid: int
    gid: int
    most: int
    size: int
    messages: tuple[tuple[int, str], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Queue:
        """Raises BadInput: it may come from anywhere."""
        try:
            found = cls(
                name=str(raw["name"]),
                **{key: int(raw[key]) for key in ("mode", "uid", "gid", "most", "size")},
                messages=tuple((int(priority), str(text)) for priority, text in raw["messages"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                doing="reading", target="a message queue", why=f"it is none: {error}"
            ) from None
        plain = "/" not in found.name and found.name not in ("", ".", "..")
        sizes = 0 < found.most <= _MOST_MESSAGES and 0 < found.size <= _MOST_BYTES
        fits = len(found.messages) <= found.most and all(map(found.takes, found.messages))
        if not plain or not sizes or not fits:
            raise BadInput(
                doing="reading", target=f"message queue {found.name!r}", why="it is none"
            )
        return found

    def takes(self, message: tuple[int, str]) -> bool:
        """Whether a message can be in it."""
        try:
            length = len(base64.b64decode(message[1], validate=True))
        except ValueError:
            return False
        return 0 <= message[0] < _PRIORITIES and length <= self.size


# ---- the dump


def find(init_pid: int, pids: Iterable[int]) -> Found | None:
    """The queues of a container, None if it has none. Raises Unsupported for those that cannot be carried."""
    where = _mount_point(init_pid)
    if where is None:
        return None
    mount, point = where
    place = f"/proc/{init_pid}/root{point}"
    device = os.stat(place).st_dev
    inodes = {os.stat(f"{place}/{name}").st_ino: name for name in os.listdir(place)}
    files: dict[str, str] = {}
    for pid in pids:
        for fd, inode in _queues_open(pid, device):
            if inode not in inodes:
                raise _refused(f"process {pid}", f"descriptor {fd} is a queue that was removed")
            files[_external(pid, fd, inode)] = inodes[inode]
    if not inodes:
        return None
    for name in inodes.values():
        match = _STATE.match(Path(place, name).read_text())
        if match and match[1] != "0":
            raise _refused(f"queue /{name}", "a process waits for its notification (mq_notify)")
    return Found(point, mount, tuple(sorted(inodes.values())), files)


def _refused(target: str, why: str) -> Unsupported:
    return Unsupported(doing="dumping", target=target, why=f"{why}, which cannot be carried")


def _mount_point(init_pid: int) -> tuple[int, str] | None:
    """(mount id, path) of the container's mqueue file system; None if it isn't mounted or unusual."""
    for mount in mountinfo.mounts(init_pid):
        if mount.kind == "mqueue" and mount.root == "/":
            return mount.id, mount.point
    return None


def _queues_open(pid: int, device: int) -> Iterator[tuple[str, int]]:
    """(descriptor, inode) of each open queue of a process."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found = os.stat(f"/proc/{pid}/fd/{fd}")
                if found.st_dev == device and os.readlink(f"/proc/{pid}/fd/{fd}")[0] == "/":
                    yield fd, found.st_ino


def _external(pid: int, fd: str, inode: int) -> str:
    """CRIU's name for an outside file: files-reg.c, "file[%x:%PRIx64]"."""
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return f"file[{int(line.split()[1]):x}:{inode:x}]"
    raise FileNotFoundError(f"/proc/{pid}/fdinfo/{fd}")


def save(init_pid: int, found: Found, id_base: int) -> list[Queue]:
    """Their state; every task is frozen. Raises Unsupported for a full one."""
    queues = []
    with _ipc_of(init_pid):
        for name in found.names:
            info = os.stat(f"/proc/{init_pid}/root{found.point}/{name}")
            with _opened(name, os.O_RDWR) as queue:
                attributes = _attributes(queue)
                if attributes.held and attributes.held >= attributes.most:
                    raise _refused(f"queue /{name}", "it is full, and processes may wait to send")
                messages = _messages(queue, attributes)
            queues.append(
                Queue(
                    name,
                    info.st_mode & 0o7777,
                    info.st_uid - id_base,
                    info.st_gid - id_base,
                    attributes.most,
                    attributes.size,
                    tuple(messages),
                )
            )
    return queues


def _messages(queue: int, attributes: _Attributes) -> list[tuple[int, str]]:
    """All of them, taken out and put back."""
    buffer = ctypes.create_string_buffer(max(1, attributes.size))
    taken: list[tuple[int, bytes]] = []
    try:
        for _ in range(attributes.held):
            priority = ctypes.c_uint()
            length = _libc.mq_receive(
                queue, buffer, ctypes.c_size_t(attributes.size), ctypes.byref(priority)
            )
            if length < 0:
                raise _error("mq_receive")
            taken.append((priority.value, buffer.raw[:length]))
    finally:
        _send(queue, taken)
    return [(priority, base64.b64encode(data).decode()) for priority, data in taken]


# ---- the restore


def restore(init_pid: int, place: str, queues: Iterable[Queue], id_base: int) -> None:
    """The ipc namespace of INIT_PID is there, its mounts are not: mount mqueue at PLACE and make the queues.

    PLACE: in the mount namespace that CRIU began with, which INIT_PID has a copy of.
    """
    namespaces = [f"--{kind}=/proc/{init_pid}/ns/{file}" for kind, file in _NAMESPACES]
    run(
        ["nsenter", *namespaces, "--", "mount", "-t", "mqueue", "mqueue", place],
        what="mounting the message queues with",
    )
    with _ipc_of(init_pid):
        for queue in queues:
            _make(queue, id_base)


_NAMESPACES = (("mount", "mnt"), ("ipc", "ipc"))


def _make(queue: Queue, id_base: int) -> None:
    attributes = _Attributes(most=queue.most, size=queue.size)
    owner = id_base + queue.uid, id_base + queue.gid
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with contextlib.ExitStack() as stack:
        with _creating_as(*owner):
            fd = stack.enter_context(_opened(queue.name, flags, queue.mode, attributes))
        os.fchmod(fd, queue.mode)  # the umask took something away
        _send(fd, [(priority, base64.b64decode(text)) for priority, text in queue.messages])


@contextlib.contextmanager
def _creating_as(uid: int, gid: int) -> Iterator[None]:
    """New files belong to these: the file system takes no owner that its user namespace doesn't know (EOVERFLOW)."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


def rewrite(entries: list[dict[str, Any]], found: Mapping[str, Any]) -> None:
    """In the entries of `files.img`, what is an outside file becomes one of /dev/mqueue. FOUND: a Found as dict."""
    for entry in entries:
        regular = entry.get("reg", {})
        name = found["files"].get(regular.get("name"))
        if regular.get("ext") and name is not None:
            regular["name"] = f"{found['point']}/{name}"
            regular["mnt_id"] = found["mount"]
            del regular["ext"]


# ---- the calls


@contextlib.contextmanager
def _ipc_of(pid: int) -> Iterator[None]:
    """The calling thread is in the ipc namespace of PID meanwhile."""
    home = os.open("/proc/thread-self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWIPC)
        finally:
            os.close(there)
        try:
            yield
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWIPC)
    finally:
        os.close(home)


@contextlib.contextmanager
def _opened(
    name: str, flags: int, mode: int = 0, attributes: _Attributes | None = None
) -> Iterator[int]:
    pointer = ctypes.byref(attributes) if attributes is not None else None
    fd = _libc.mq_open(
        b"/" + os.fsencode(name), flags | os.O_NONBLOCK, ctypes.c_uint(mode), pointer
    )
    if fd < 0:
        raise _error(f"mq_open /{name}")
    try:
        yield fd
    finally:
        os.close(fd)


def _attributes(queue: int) -> _Attributes:
    attributes = _Attributes()
    if _libc.mq_getattr(queue, ctypes.byref(attributes)) < 0:
        raise _error("mq_getattr")
    return attributes


def _send(queue: int, messages: Iterable[tuple[int, bytes]]) -> None:
    """Of the same priority, what is sent first is received first."""
    for priority, data in messages:
        if _libc.mq_send(queue, data, ctypes.c_size_t(len(data)), ctypes.c_uint(priority)) < 0:
            raise _error("mq_send")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
