"""The memory of a container that is arriving: the destination's half of a warm migration.

Pages come on a lane of their own while the container still runs at the source, and are kept by process and address. At
the source's last mark, when every page is here and counts and digest agree, they are handed to a pager, a process that
outlives us: it gives the restored tasks the pages that they touch, and fills in the rest behind their back.

What tasks had written to private mappings of files is put in place when they are restored and don't run yet.

What processes share lies in memfds that are as the tasks are to have them, and CRIU takes those instead of its own (see
runtime/veil/handover.c).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ckpt.ops.host import Host
from images.lazy_entries import shared_of
from runtime import cgroups, proc
from runtime.errors import RuntimeFault, SystemFault, Unsupported
from runtime.pagecache.charge import Charger
from runtime.pagecache.place import place
from runtime.pagecache.store import PageStore
from runtime.pager.client import Pager
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.wire import COPIES_FROM, Range, is_copies
from runtime.shared.find import missing

_TICK = 0.05


class Intake:
    """Takes what comes on the lane FD, which it doesn't close, into STORE. Close it.

    The lane may be silent for as long as layers and files travel, or as nobody asks for what is owed. on_pages may be
    set when pages are owed (see PageReceiver).
    """

    def __init__(self, fd: int, store: PageStore) -> None:
        # Our own: the lane may be given up, and its descriptor closed, while our thread waits on it.
        self._fd = os.dup(fd)
        self.on_pages: Callable[[int, list[Range]], None] = lambda task, ranges: None
        self._receiver = PageReceiver(
            self._fd,
            store,
            on_pages=lambda task, ranges: self.on_pages(task, ranges),
            patience=float("inf"),
        )
        self.marks = 0
        self._changed = threading.Condition()
        self.fault: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over:
                self._receiver.until_mark()
                with self._changed:
                    self.marks += 1
                    self._changed.notify_all()
        except BaseException as fault:
            with self._changed:
                self.fault = fault
                self._changed.notify_all()

    def wait_marks(self, count: int, check: Callable[[], None]) -> None:
        """Until COUNT marks came that agree with what came before them. CHECK may raise. Raises the lane's fault."""
        while True:
            check()
            with self._changed:
                if self.marks >= count:
                    return
                if self.fault is not None:
                    raise self.fault
                self._changed.wait(_TICK)

    def close(self) -> None:
        """The lane's other end is given up before: else this waits for it."""
        self._over = self._receiver.over = True
        self._thread.join(5)
        os.close(self._fd)


class Landing:
    """FD: the lane, which it doesn't close. LIMIT: bytes of memory that may be taken. Close it."""

    def __init__(self, fd: int, *, limit: int) -> None:
        self._charger = Charger()
        self.store = PageStore(limit=limit, charger=self._charger)
        self.intake = Intake(fd, self.store)
        self.wait_marks = self.intake.wait_marks
        self._handed_over = threading.Event()
        self.pager: Pager | None = None

    def charge_to(self, cgroup: cgroups.Cgroup) -> None:
        """What processes share will be memory of this cgroup; it waits for this. Until hand_over()."""
        self._charger.begin(cgroup.add)

    # ---- the pager

    def start_pager(self, host: Host, directory: int, errors: Path) -> None:
        """It listens in the work directory of the restore from now on."""
        with errors.open("ab") as file:
            self.pager = Pager(directory, errors=file)
        worker = self.pager.status().worker
        _move(cgroups.monitors(host.layout), [worker, int(proc.stat(worker)[1])])  # and its parent

    def hand_over(self) -> None:
        """All pages are here, or noted as still to come: the pager may answer, and goes on without us from now on."""
        assert self.pager is not None
        self._charger.end()
        for task in self.store:
            if task in self.store.shared:
                self.store[task].let_go()  # it may be about to be sealed against writing
            elif not is_copies(task):
                self.pager.pages(task, self.store[task], known=True)
        self.pager.complete()
        self._handed_over.set()

    def along(self, image: str, owner: int, check: Callable[[], None]) -> int | None:
        """For images.criu_stream.Serve: the memfd that CRIU is to have when it asks for the content of one.

        Waits until all pages are here: only then is it known which objects are carried to the end. OWNER: the
        container's root; CRIU gives the memfd the owner that it had. CHECK may raise to end it.
        """
        wanted = shared_of(image)
        if wanted is None:
            return None
        while not self._handed_over.wait(_TICK):
            check()
        for number, inode in self.store.shared.items():
            if inode == wanted:
                os.fchown(self.store[number].fd, owner, owner)
                return self.store[number].fd
        return None

    def check_restored(self, pids: Callable[[], Iterable[int]]) -> None:
        """CRIU has restored everything, and nothing has run: every page must have a place. PIDS: the restored tasks.

        Raises SystemFault.
        """
        assert self.pager is not None
        shared = {os.fstat(self.store[number].fd).st_ino for number in self.store.shared}
        if missing(shared, pids()):
            raise SystemFault(
                doing="placing", target="the shared memory of the container",
                why="CRIU did not take what came",
            )  # fmt: skip
        status = self.pager.fill()
        self._place_copies(pids())
        if status.trouble or status.dropped:
            raise SystemFault(
                doing="placing",
                target="the pages of the container",
                why=status.trouble or f"{status.dropped} bytes have no place in the restored tasks",
            )
        if not status.fork_events:
            raise Unsupported(
                doing="placing", target="the pages of the container",
                why="this kernel doesn't tell of forks while pages are missing",
            )  # fmt: skip

    def _place_copies(self, pids: Iterable[int]) -> None:
        copies = {task for task in self.store if is_copies(task)}
        for pid in pids if copies else ():
            task = COPIES_FROM + proc.number_inside(pid)
            if task in copies:
                place(pid, self.store[task])
                copies.discard(task)
        if any(self.store[task].known for task in copies):
            raise SystemFault(
                doing="placing", target="pages of the container", why="their process is not there"
            )

    def close(self) -> None:
        """Give back what we hold; a pager that has its orders keeps its own."""
        if self.pager is not None:
            with contextlib.suppress(RuntimeFault):
                self.pager.close()
        self._charger.end()
        self.intake.close()
        self.store.close()


def _move(procs: str, pids: list[int]) -> None:
    """Out of our session's cgroup, whose end would take them along; as the monitors are."""
    for pid in pids if procs else ():
        with contextlib.suppress(OSError):
            Path(procs).write_text(str(pid))
