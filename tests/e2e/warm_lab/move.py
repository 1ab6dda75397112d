"""A warm move on one host, made of the parts: veil, page server, lane of pages, page store, pager, lazy entries.

What is missing is tracking: everything is copied once while the program runs and once more while it is frozen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from images.criu_stream import Capture, Serve
from images.lazy_entries import plan_lazy
from images.pages import build_page_map, parse_page_map
from images.rewrite import FilteredSink, Rewriter
from images.spool import Spool
from runtime.criu.page_server import PageServer
from runtime.pagecache.store import PageStore
from runtime.pager.client import Pager, Status
from runtime.pagesource.read import Range, TaskReader
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.veil.carry import carryable
from runtime.veil.veil import Hide, Veil
from tests.e2e.warm_lab.lab import COMMON, Hog, criu, log_of, until
from tests.unit.images.fake_criu import InThread

PAGE = 4096


def task_number(pid: int) -> int:
    """The process id as the container sees it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise AssertionError(pid)


def populated(pid: int, ranges: Sequence[Range]) -> list[Range]:
    """Those pages of RANGES that are there."""
    out: list[Range] = []
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        for start, end in ranges:
            file.seek(start // PAGE * 8)
            entries = memoryview(file.read((end - start) // PAGE * 8)).cast("Q")
            for index, entry in enumerate(entries):
                page = start + index * PAGE
                if not entry >> 62:
                    continue
                if out and out[-1][1] == page:
                    out[-1] = (out[-1][0], page + PAGE)
                else:
                    out.append((page, page + PAGE))
    return out


@dataclass(slots=True)
class Dump:
    """A dump that waits for its verdict with everything frozen, or one that has failed."""

    process: subprocess.Popen[bytes]
    server: PageServer
    veil: Veil
    log: Path

    def text(self) -> str:
        return log_of(self.log)

    @property
    def failed(self) -> bool:
        return self.process.poll() is not None


@contextlib.contextmanager
def dumped(hog: Hog, folder: Path, sink: Spool | FilteredSink, veil: Veil) -> Iterator[Dump]:
    """criu dump --lazy-pages behind the veil. At the end of the block, without another verdict, it is resumed."""
    work = folder / "d"
    work.mkdir()
    with PageServer() as server:
        capture = Capture(str(work))
        complete = threading.Event()
        argv = [
            *(criu(), "dump", *COMMON, "-D", str(work), "-o", "dump.log", "-t", str(hog.pid)),
            *("--network-lock", "skip", *server.options),
        ]
        process = subprocess.Popen(
            veil.wrap(argv),
            stdin=subprocess.DEVNULL,
            pass_fds=[server.inherit, *veil.pass_fds],
        )
        server.started()
        veil.started()
        running = InThread(lambda: capture.run(sink, on_complete=complete.set))
        state = Dump(process, server, veil, work / "dump.log")
        try:
            until(lambda: complete.is_set() or state.failed, state.text)
            yield state
        finally:
            server.drop_to_resume()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
            running.join()


@contextlib.contextmanager
def restored(folder: Path, spool: Spool) -> Iterator[Callable[[], Hog]]:
    """criu restore --lazy-pages, started and waiting for its first image; at the end killed with what it restored.

    Gives a function that waits until everything runs.
    """
    work, root = folder / "r", folder / "root"
    log, pidfile = work / "restore.log", work / "pid"
    serve = Serve(str(work))
    running = InThread(lambda: serve.run(spool.source()))
    argv = [
        *(criu(), "restore", *COMMON, "-D", str(work), "-W", str(work), "-o", "restore.log"),
        *("--root", str(root), "--lazy-pages", "--pidfile", str(pidfile)),
    ]
    # The root has to be a mount point; in a mount namespace of its own, which goes with CRIU.
    script = 'mount --bind "$0" "$0" && exec "$@"'
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    process = subprocess.Popen([*private, *argv], stdin=subprocess.DEVNULL)

    def wait() -> Hog:
        until(
            lambda: process.poll() is not None
            or (log.exists() and "Restore finished successfully" in log.read_text(errors="replace")),
            lambda: log_of(log),
        )  # fmt: skip
        assert process.poll() is None, log_of(log)
        return Hog(int(pidfile.read_text()))

    try:
        yield wait
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        spool.end()
        running.join()


@dataclass(slots=True)
class Moved:
    """hidden, fetched: bytes that CRIU didn't see, and that it left to its page server."""

    hog: Hog
    status: Status
    hidden: int
    fetched: int
    peak: int
    """Bytes of the page store when everything had arrived."""


@contextlib.contextmanager
def moved(
    hog: Hog, folder: Path, *, before_run: Callable[[Pager], object] = lambda pager: None
) -> Iterator[Moved]:
    """Move it. BEFORE_RUN: called when all pages are there, before CRIU has any image."""
    work = folder / "r"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        spool, store = enter(Spool()), enter(PageStore())
        pager = enter(Pager(str(work), errors=enter((folder / "pager.err").open("wb"))))
        wait_restored = enter(restored(folder, spool))
        lane_out, lane_in = os.pipe()
        stack.callback(os.close, lane_out)
        stack.callback(os.close, lane_in)
        sender, receiver = enter(PageSender(lane_in)), PageReceiver(lane_out, store)
        readers = {pid: enter(TaskReader(pid)) for pid in hog.pids()}
        tasks = {task_number(pid): pid for pid in readers}

        def copy(ranges: Callable[[int, int], Sequence[Range]]) -> None:
            """Those of each task, and all has arrived."""
            receiving = InThread(receiver.until_mark)
            for task, pid in tasks.items():
                sender.send(task, readers[pid], ranges(task, pid))
            sender.mark()
            receiving.join()

        copy(lambda task, pid: populated(pid, carryable(pid)))

        veil = enter(Veil(lambda pid: carryable(pid) if pid in readers else [], folder))
        fetch: dict[int, tuple[Range, ...]] = {}

        def rewrite(task: int, data: bytes) -> bytes:
            plan = plan_lazy(parse_page_map(data, f"of task {task}"), veil.hidden[tasks[task]])
            fetch[task] = plan.fetch
            return build_page_map(plan.page_map.pages_id, plan.page_map.runs)

        # CRIU's images wait here until the pages are there: only so can a test look in between.
        images = enter(Spool())
        rewriter = Rewriter()
        for task in tasks:
            rewriter.add(rf"pagemap-{task}\.img", partial(rewrite, task))
        with dumped(hog, folder, FilteredSink(images, rewriter), veil) as dump:
            assert not dump.failed, dump.text()
            copy(
                lambda task, pid: [
                    *populated(pid, veil.hidden[pid]),
                    *populated(pid, fetch[task]),
                ]
            )
            peak = store.size
            for task in tasks:
                pager.pages(task, store[task])
            pager.complete()
            before_run(pager)
            for name in images.infos():
                spool.put(name, images.read(name))
            spool.end()
            new = wait_restored()
            dump.server.close_and_kill()
            assert dump.process.wait(30) == 0, dump.text()
        status = pager.wait(60)
        yield Moved(
            new,
            status,
            sum(end - start for pairs in veil.hidden.values() for start, end in pairs),
            sum(end - start for pairs in fetch.values() for start, end in pairs),
            peak,
        )


__all__ = ["Dump", "Hide", "Moved", "dumped", "moved", "populated", "restored"]
