"""The pager's loop.

    orders      PAGES, COMPLETE, FILL, STATUS from the one who started us, over a socket that may close at any time
    a fetcher   of pages that are still to come (lazy moves): hears which are waited for, tells which have come
    CRIU        one connection: per task its process id, then its userfaultfd; at the end "restore finished"
    tasks       faults, fork, mremap, munmap, madvise
    in between  filling, a chunk at a time

A fault that comes before COMPLETE is held back: its page may still change. Filling begins with FILL (everything is
restored, so all memory is registered) or with CRIU's "finished", whatever comes first.

The end: every task has all its pages, or has ended, and CRIU is finished. Or the starter went away before COMPLETE:
then nothing of what is being restored will ever run.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import struct
import time

from runtime.pagecache.store import Owed, TaskPages
from runtime.pager import uffd
from runtime.pager.journal import Journal, Kind
from runtime.pager.pending import Pending
from runtime.pager.task import PAGE, Task

FINISHED = 0x52535446
"""CRIU's last word, LAZY_PAGES_RESTORE_FINISHED."""
_EVENTS_AT_ONCE = 64
_PAUSE = 0.02
"""Seconds before something is tried again that failed for want of memory."""
_MAX_ORDER = 4096
_MAX_WORD = 1 << 18
FETCHERS = "pager.socket"
HEAD_START = 32 << 20
"""Bytes that are placed before the tasks run: a small container has all of its memory then. More would take processor
time from those who are about to let them run."""
_LOOK = 500
"""Milliseconds after which a task whose pages are all still to come is looked at: nobody tells when it dies."""


class Worker:
    """CONTROL: the starter's socket (SOCK_SEQPACKET); LISTENER: CRIU will connect to it; FETCHERS: whoever fetches.

    DIRECTORY: where both are bound; a FETCHERS that isn't there any more means that all ended well.
    """

    def __init__(
        self, journal: Journal, control: int, listener: int, fetchers: int, directory: int
    ) -> None:
        self._journal = journal
        self._directory = directory
        # None of these is ever closed: a worker after us has to find the same descriptors.
        self._control = socket.socket(fileno=control)
        self._listener = socket.socket(fileno=listener)
        self._fetchers = socket.socket(fileno=fetchers)
        self._upstream: socket.socket | None = None
        self._owed: dict[int, Owed] = {}
        self.awaited = 0
        self._criu: socket.socket | None = None
        self._cache: dict[int, TaskPages] = {}
        self._known: dict[int, Pending] = {}
        self._tasks: dict[int, Task] = {}  # by userfaultfd
        self._held: list[tuple[Task, int]] = []
        self.complete = False
        self.filling = False
        self.finished = False
        self.orphaned = False
        self.fork_events = True
        self.trouble = ""
        self._poller = select.poll()
        for fd in (control, listener, fetchers):
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._poller.register(fd, select.POLLIN)

    # ---- state: changed by records only, so that a new worker comes to the same

    def take_over(self) -> None:
        """Apply what an earlier worker recorded, then let everybody who waits for a page ask again."""
        for record in self._journal.replay():
            self._apply(*record)
        for task in self._tasks.values():
            uffd.wake_all(task.fd)  # the faults that it had read are lost

    def _record(self, kind: Kind, fd: int = 0, number: int = 0) -> None:
        self._journal.add(kind, fd, number)
        self._apply(kind, fd, number, b"")

    def _apply(self, kind: Kind, fd: int, number: int, message: bytes) -> None:
        if kind is Kind.PAGES:
            self._cache[number] = TaskPages(fd, self._owed.get(number))
        elif kind is Kind.OWED:
            self._owed[number] = Owed(fd)
        elif kind is Kind.UPSTREAM:
            if self._upstream is not None:
                self._forget_upstream()
            self._upstream = socket.socket(fileno=fd)
            self._watch(fd)
        elif kind is Kind.CONNECTED:
            self._criu = socket.socket(fileno=fd)
            self._watch(fd)
            self._poller.unregister(self._listener)
        elif kind is Kind.TASK:
            task = self._tasks[fd] = Task(number, fd)
            self.fork_events &= bool(uffd.features(fd) & uffd.FEATURE_EVENT_FORK)
            self._watch(fd)
            if self.complete:
                self._begin(task)
        elif kind is Kind.COMPLETE:
            self.complete = True
            for task in self._tasks.values():
                self._begin(task)
        elif kind is Kind.FILL:
            self.filling = True
        elif kind is Kind.FINISHED:
            self.finished = True
            assert self._criu is not None
            self._poller.unregister(self._criu)
        elif kind is Kind.ORPHANED:
            self.orphaned = True
            self._poller.unregister(self._control)
        elif kind is Kind.EVENT and fd in self._tasks:
            self._event(self._tasks[fd], message)

    def _begin(self, task: Task) -> None:
        task.begin(self._cache.get(task.number), self._known.get(task.number))

    def _event(self, task: Task, message: bytes) -> None:
        event, first, second, third = uffd.MESSAGE.unpack(message)
        if event == uffd.FORK:
            child = self._tasks[first & 0xFFFFFFFF] = task.forked(first & 0xFFFFFFFF)
            self._watch(child.fd)
        elif event == uffd.REMAP:
            task.moved(first, second, third)
        elif event in (uffd.REMOVE, uffd.UNMAP):
            task.removed(first, second)

    # ---- the loop

    def run(self) -> None:
        while not self._ended():
            may_fill = self.complete and (self.finished or (self.filling and self._early))
            busy = may_fill and any(task.busy for task in self._tasks.values())
            again = any(task.again for task in self._tasks.values())
            starved = any(task.starved and not task.done for task in self._tasks.values())
            wait = 0 if busy else 5 if again else _LOOK if starved else None
            ready = self._poller.poll(wait)
            for fd, _ in ready:
                self._ready(fd)
            if starved and not ready:
                for task in self._tasks.values():
                    task.look_whether_ended()
            self._settle_held()
            if busy:
                self._fill_some()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FETCHERS, dir_fd=self._directory)
        self._say_status(done=True)
        self._tell_upstream({"done": True, "faults": self.awaited})

    def _ended(self) -> bool:
        if not self.complete:
            return self.orphaned
        if not self.finished and (not self.orphaned or self._criu is not None):
            return False
        # Without CRIU, and with nobody to start one, there is nothing to wait for.
        return self._all_filled()

    @property
    def _early(self) -> bool:
        """Whether to fill on before the tasks run."""
        return sum(task.placed for task in self._tasks.values()) < HEAD_START

    def _all_filled(self) -> bool:
        return all(task.done for task in self._tasks.values())

    def _ready(self, fd: int) -> None:
        if fd in self._tasks:
            self._read_events(self._tasks[fd])
        elif fd == self._control.fileno():
            self._order()
        elif fd == self._listener.fileno():
            connection, _ = self._listener.accept()
            self._record(Kind.CONNECTED, connection.detach())
        elif self._criu is not None and fd == self._criu.fileno():
            self._hear_criu(self._criu)
        elif fd == self._fetchers.fileno():
            connection, _ = self._fetchers.accept()
            self._record(Kind.UPSTREAM, connection.detach())
            self._greet_upstream()
        elif self._upstream is not None and fd == self._upstream.fileno():
            self._hear_upstream(self._upstream)

    def _fill_some(self) -> None:
        """A chunk for each task that needs one."""
        waiting = True
        for task in list(self._tasks.values()):
            if not task.busy:
                continue
            try:
                waiting &= not task.fill()
            except OSError as error:
                self._in_trouble(error)
        if waiting:
            # All wait for an event that has to be read; it may not have arrived yet.
            time.sleep(0.0005)

    def _in_trouble(self, error: OSError) -> None:
        """No memory, mostly. The task waits; better late than wrong."""
        self.trouble = f"{error.strerror}"
        time.sleep(_PAUSE)

    # ---- tasks

    def _read_events(self, task: Task) -> None:
        for _ in range(_EVENTS_AT_ONCE):
            try:
                message = self._journal.read_event(task.fd)
            except BlockingIOError:
                break
            if message is None:
                break
            event, _, address, _ = uffd.MESSAGE.unpack(message)
            if event == uffd.PAGEFAULT:
                self._fault(task, address)
            else:
                self._journal.keep_event()
                self._event(task, message)
                task.again += task.waiting  # it may be something else now
                task.waiting = []
        if task.again:
            again, task.again = task.again, []
            for address in again:
                self._fault(task, address, first=False)

    def _fault(self, task: Task, address: int, *, first: bool = True) -> None:
        task.faults += first
        if not self.complete:
            self._held.append((task, address))
            return
        waiting = len(task.waiting)
        try:
            task.fault(address)
            if len(task.waiting) > waiting:
                self._want(task)
        except OSError as error:
            self._in_trouble(error)
            task.again.append(address & ~(PAGE - 1))

    def _settle_held(self) -> None:
        """Faults from before COMPLETE, and those that an event stood in the way of."""
        if not self.complete:
            return
        held, self._held = self._held, []
        for task, address in held:
            self._fault(task, address, first=False)
        for task in list(self._tasks.values()):
            if task.again:
                again, task.again = task.again, []
                for address in again:
                    self._fault(task, address, first=False)

    # ---- who fetches what is still to come

    def _want(self, task: Task) -> None:
        """The last fault of TASK waits for a page of the other host. Nobody there to ask: asked when somebody comes."""
        address = task.waiting[-1]
        found = task.pending.find(address)
        if found is not None and address not in task.asked:
            self.awaited += 1
            task.asked.add(address)
            self._tell_upstream({"want": [task.number, address + found[2]]})

    def _greet_upstream(self) -> None:
        """Somebody new: all the pages that we have, what is still to come, and (again) who waits."""
        for number, pages in self._cache.items():
            if pages.owed is not None:
                self._tell_upstream({"task": number}, [pages.fd, pages.owed.fd])
        self._tell_upstream({"tasks": True})
        for task in self._tasks.values():
            task.look_again()
            self.awaited -= len(task.asked)  # they are asked for once more
            task.asked.clear()
            task.again += task.waiting
            task.waiting = []

    def _tell_upstream(self, word: dict[str, object], fds: list[int] | None = None) -> None:
        if self._upstream is None:
            return
        try:
            socket.send_fds(self._upstream, [json.dumps(word).encode()], fds or [])
        except OSError:
            self._forget_upstream()  # another will come, and be told all

    def _hear_upstream(self, upstream: socket.socket) -> None:
        try:
            data = upstream.recv(_MAX_WORD)
        except OSError:
            data = b""
        if not data:
            self._forget_upstream()
            return
        word = json.loads(data)
        for task in self._tasks.values():
            if task.number == word["task"]:
                task.come([(start, end) for start, end in word["here"]])
                task.again += task.waiting
                task.waiting = []

    def _forget_upstream(self) -> None:
        assert self._upstream is not None
        with contextlib.suppress(KeyError):
            self._poller.unregister(self._upstream)
        with contextlib.suppress(OSError):
            # The descriptor itself is the keeper's as well: it stays.
            self._upstream.shutdown(socket.SHUT_RDWR)
        self._upstream.detach()
        self._upstream = None

    # ---- CRIU

    def _hear_criu(self, criu: socket.socket) -> None:
        word = _receive(criu, 4)
        number = int.from_bytes(word, "little", signed=True) if len(word) == 4 else 0
        if len(word) < 4 or number == FINISHED:
            # Without the last word the restore has failed: its tasks are being killed, which the filling will notice.
            self._record(Kind.FINISHED)
        elif number > 0:
            fd = _receive_fd(criu)
            if fd < 0 or not uffd.is_userfaultfd(fd):
                self.trouble = f"CRIU sent no userfaultfd for task {number}"
                self._record(Kind.FINISHED)
            else:
                self._record(Kind.TASK, fd, number)
        # A negative number is a zombie: it has no memory.

    # ---- orders

    def _order(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MAX_ORDER, 3)
        except OSError:
            data, fds = b"", []
        if not data:
            self._record(Kind.ORPHANED)
            return
        order = json.loads(data)
        if order["op"] == "pages":
            named = dict(zip(order["fds"], fds, strict=True))
            if "owed" in named:
                self._record(Kind.OWED, named["owed"], order["task"])
            self._record(Kind.PAGES, named["pages"], order["task"])
            if "runs" in named:
                # Not on record: when a worker after us begins, some are placed and gone from there already.
                self._known[order["task"]] = Pending.load(named["runs"])
                os.close(named["runs"])
        elif order["op"] == "complete":
            self._record(Kind.COMPLETE)
        elif order["op"] == "fill":
            for task in self._tasks.values():
                task.drop_homeless()
            self._record(Kind.FILL)
        self._say_status()

    def _say_status(self, done: bool = False) -> None:
        if self.orphaned:
            return
        tasks = self._tasks.values()
        status = {
            "tasks": len(tasks),
            "ended": sum(task.ended for task in tasks),
            "faults": sum(task.faults for task in tasks),
            "awaited": self.awaited,
            "placed": sum(task.placed for task in tasks),
            "missing": sum(task.pending.size for task in tasks if not task.ended),
            "dropped": sum(task.dropped for task in tasks if not task.ended),
            "fork_events": self.fork_events,
            "complete": self.complete,
            "finished": self.finished,
            "trouble": self.trouble,
            "worker": os.getpid(),
            "done": done,
        }
        try:
            self._control.send(json.dumps(status).encode())
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionResetError:
            part = b""
        if not part:
            break
        data += part
    return data


def _receive_fd(sock: socket.socket) -> int:
    """CRIU sends one byte with one descriptor; -1 if it didn't."""
    _, ancillary, _, _ = sock.recvmsg(
        1, socket.CMSG_SPACE(struct.calcsize("i")), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(data[:4])
            return fds[0]
    return -1
