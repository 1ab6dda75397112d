"""Answering one notification: whose PAGEMAP_SCAN it is, on whose memory, and what it may see.

Runs in the guard: standard library only, a system call for each thing and nothing kept that could be stale but the
hidden ranges themselves (the tasks are frozen while CRIU scans them).

The interface is seccomp_unotify(2): RECV gives an id; whatever is then read from or written to the caller's memory
must be preceded by ID_VALID after the memory has been opened, as the process id could have been reused since.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct

from runtime.veil import scan

TYPE_CHECKING = False  # importing typing costs the guard milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTIF = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, instruction pointer, args."""
_RESPONSE = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""
_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_CONTINUE = 1
_PAGEMAP = re.compile(r"/(\d+)(?:/task/\d+)?/pagemap$")
_PID = struct.Struct("=I")
_PAIR = struct.Struct("=2Q")
REFUSED = 0xFFFFFFFF
"""Instead of a count of ranges: the caller can't tell, the dump must fail."""


class Answerer:
    """LISTENER: the filter's; CONTROL: see guard.py."""

    def __init__(self, listener: int, control: socket.socket) -> None:
        self._listener = listener
        self._control = control
        self._hidden: dict[int, Sequence[tuple[int, int]]] = {}
        self._pagemaps: dict[int, int] = {}
        self._scanner = scan.Scanner()

    def answer_one(self) -> None:
        notif = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self._listener, _RECV, notif)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # the caller was killed meanwhile
            raise
        number, caller, _, _, _, _, fd, _, address, *_ = _NOTIF.unpack(notif)
        value, fault, flags = 0, 0, 0
        try:
            pid = self._whose(caller, fd)
            answer = None
            # On itself CRIU tries which features the kernel has.
            if pid is not None and pid != caller and (hidden := self._ranges(pid)):
                answer = self._scan(number, caller, pid, address, hidden)
            if answer is None:
                flags = _CONTINUE
            else:
                value = answer
        except OSError as error:
            fault = -(error.errno or errno.EIO)
        except Exception:
            fault = -errno.EIO
        with contextlib.suppress(FileNotFoundError):  # the caller was killed meanwhile
            fcntl.ioctl(
                self._listener, _SEND, bytearray(_RESPONSE.pack(number, value, fault, flags))
            )

    def _whose(self, caller: int, fd: int) -> int | None:
        """The process whose pagemap FD of CALLER is; None if it is something else."""
        try:
            found = _PAGEMAP.search(os.readlink(f"/proc/{caller}/fd/{fd}"))
        except FileNotFoundError:
            return None  # a bad descriptor: the kernel says so itself
        return int(found[1]) if found else None

    def _ranges(self, pid: int) -> Sequence[tuple[int, int]]:
        if pid not in self._hidden:
            self._control.sendall(_PID.pack(pid))
            (count,) = _PID.unpack(self._receive(_PID.size))
            if count == REFUSED:
                raise OSError(errno.EIO, "refused")
            pairs = _PAIR.iter_unpack(self._receive(count * _PAIR.size))
            self._hidden[pid] = [(start, end) for start, end in pairs]
        return self._hidden[pid]

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._control.recv(min(size - len(parts), 1 << 20))
            if not part:
                # Nobody left to tell what is hidden: die, the kernel then answers ENOSYS.
                raise SystemExit(1)
            parts += part
        return bytes(parts)

    def _pagemap(self, pid: int) -> int:
        if pid not in self._pagemaps:
            self._pagemaps[pid] = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        return self._pagemaps[pid]

    def _scan(
        self, number: int, caller: int, pid: int, address: int, hidden: Sequence[tuple[int, int]]
    ) -> int | None:
        """Do the scan in CALLER's stead; returns the ioctl's result, None where the kernel may do it itself.

        Raises OSError with the ioctl's error.
        """
        memory = os.open(f"/proc/{caller}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._listener, _ID_VALID, bytearray(_PID_ID.pack(number)))
            raw = _read(memory, address, scan.ARG.size)
            asked = scan.Scan(raw)
            if not asked.wants_content:
                return None
            if asked.size != scan.ARG.size or asked.start > asked.end or asked.start % scan.PAGE:
                raise OSError(errno.EINVAL, "not a scan that this kernel knows")
            pagemap = self._pagemap(pid)
            found = scan.scan_around(
                asked,
                hidden,
                lambda start, end, room, pages: self._scanner(
                    pagemap, asked, start, end, room, pages
                ),
            )
            if found.regions:
                _write(memory, asked.vec, found.regions)
            _write(memory, address + scan.WALK_END_AT, scan.WALK_END.pack(found.walk_end))
        finally:
            os.close(memory)
        return found.count


_PID_ID = struct.Struct("=Q")


def _read(memory: int, address: int, size: int) -> bytes:
    raw = os.pread(memory, size, address)
    if len(raw) != size:
        raise OSError(errno.EFAULT, "short read")
    return raw


def _write(memory: int, address: int, data: bytes) -> None:
    if os.pwrite(memory, data, address) != len(data):
        raise OSError(errno.EFAULT, "short write")
