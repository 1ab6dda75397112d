"""A warm move within one host, made of ckpt's parts with nothing between them.

The order is docs/warm.md's: rounds while it runs, a restore that waits for its first image, a dump behind the veil, the
last pages while CRIU goes on, page maps rewritten, pages served by the pager.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ckpt.ops.outgoing import Held
from images.criu_stream import Capture, Serve
from images.image_file import rehearse
from images.lazy_entries import plan_lazy, task_of
from images.pages import build_page_map, parse_page_map
from images.parts import INVENTORY
from images.spool import Spool
from runtime.criu.page_server import PageServer
from runtime.pagecache.store import PageStore
from runtime.pager.client import Pager
from runtime.pagesource.read import TaskReader
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.tracking import choose, population
from runtime.tracking.ranges import Range
from runtime.veil.carry import carryable, is_candidate
from runtime.veil.veil import Veil

ROUNDS = 4
TASK = 1
"""The workload's process id in its container."""
_COMMON = ("--stream", "--manage-cgroups=ignore", "--network-lock", "skip", "-v2")


class _Memory:
    """The pages on their way: a sender and a receiver with a pipe between them."""

    def __init__(self, pid: int, stack: contextlib.ExitStack) -> None:
        self.store = stack.enter_context(PageStore())
        out, into = os.pipe()
        stack.callback(os.close, out)
        stack.callback(os.close, into)
        self._sender = stack.enter_context(PageSender(into, compress=False))
        self._receiver = PageReceiver(out, self.store)
        self._reader = stack.enter_context(TaskReader(pid))
        self._pid = pid
        self._tracker = choose.best(is_candidate)
        stack.callback(self._tracker.stop)
        self._tracker.start([pid])

    def round(self, *, frozen: bool = False) -> None:
        """What was written since the last one, to its place."""
        dirty = self._tracker.dirty(self._pid, frozen=frozen)
        self.copy(dirty, quick=frozen)

    def copy(self, ranges: Iterable[Range], *, quick: bool = False) -> None:
        arriving = threading.Thread(target=self._receiver.until_mark)
        arriving.start()
        with population.opened(self._pid) as pagemap:
            there = population.populated(pagemap, ranges)
        if self._tracker.compares:
            raise NotImplementedError("the host's tracker has to be told what was read")
        self._sender.send(TASK, self._reader, there, quick=quick)
        self._sender.mark()
        self._sender.flush()
        arriving.join()


def move(criu: str, pid: int, root: Path, folder: Path) -> None:
    """Process PID with its container goes, and comes back to life in another below the same ROOT."""
    source, target = folder / "s", folder / "t"
    source.mkdir()
    target.mkdir()
    with contextlib.ExitStack() as stack:
        rehearse()
        memory = _Memory(pid, stack)
        for _ in range(ROUNDS):
            memory.round()
        pager = stack.enter_context(Pager(str(target)))
        spool = stack.enter_context(Spool())
        restore = stack.enter_context(_restoring(criu, root, target, spool))
        veil = stack.enter_context(Veil(lambda who: carryable(who) if who == pid else [], folder))
        server = stack.enter_context(PageServer())
        time.sleep(0.3)  # until the restore waits
        memory.round()
        sink = Held(spool, page_maps=True)
        dump = _Dump(criu, pid, source, veil, server, sink)
        dump.wait(sink.begun.is_set)
        memory.round(frozen=True)
        dump.wait(dump.is_complete)
        maps = [name for name in sink.held if task_of(name) is not None]
        for name in maps:
            plan = plan_lazy(parse_page_map(sink.held[name], name), veil.hidden[pid])
            sink.held[name] = build_page_map(plan.page_map.pages_id, plan.page_map.runs)
            memory.copy(plan.fetch, quick=True)
        pager.pages(TASK, memory.store[TASK])
        pager.complete()
        for name in sorted(sink.held, key=lambda name: name == INVENTORY):
            spool.put(name, sink.held[name])
        spool.end()
        if restore.wait():
            raise subprocess.CalledProcessError(restore.returncode, "criu restore")
        server.close_and_kill()
        dump.end()
        pager.wait(120)


class _Dump:
    """CRIU at work behind the veil, its images on their way into SINK."""

    def __init__(
        self, criu: str, pid: int, folder: Path, veil: Veil, server: PageServer, sink: Held
    ) -> None:
        self._capture = Capture(str(folder))
        argv = [criu, "dump", *_COMMON, "-t", str(pid), "-D", str(folder), "-o", "d.log"]
        self._process = subprocess.Popen(
            veil.wrap([*argv, *server.options]),
            stdin=subprocess.DEVNULL,
            pass_fds=[server.inherit, *veil.pass_fds],
        )
        server.started()
        veil.started()
        self._thread = threading.Thread(target=self._capture.run, args=(sink,), daemon=True)
        self._thread.start()

    def is_complete(self) -> bool:
        return self._capture.complete

    def wait(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self._process.poll() is not None:
                raise subprocess.CalledProcessError(self._process.returncode, "criu dump")
            time.sleep(0.0005)

    def end(self) -> None:
        if self._process.wait(30):
            raise subprocess.CalledProcessError(self._process.returncode, "criu dump")
        self._thread.join()


@contextlib.contextmanager
def _restoring(
    criu: str, root: Path, folder: Path, spool: Spool
) -> Iterator[subprocess.Popen[bytes]]:
    """CRIU waiting for its first image."""
    serve = Serve(str(folder))
    thread = threading.Thread(target=serve.run, args=(spool.source(),), daemon=True)
    thread.start()
    where = ["-D", str(folder), "-W", str(folder), "-o", "r.log", "--root", str(root)]
    process = subprocess.Popen(
        [criu, "restore", "--lazy-pages", "--restore-detached", *_COMMON, *where],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        spool.end()
        process.kill()
        process.wait()
        thread.join(10)
