"""A warm move on one host, made of the parts: veil, page server, lane of pages, page store, pager, lazy entries.

What is missing is tracking: everything is copied once while the program runs and once more while it is frozen.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from images.criu_stream import Capture, Serve
from images.lazy_entries import plan_lazy, task_of
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
from runtime.veil.veil import Veil
from tests.e2e.warm_lab.lab import COMMON, Hog, criu, log_of, until
from tests.unit.images.fake_criu import InThread


def task_number(pid: int) -> int:
    """The process id as the container sees it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise AssertionError(pid)


def populated(pid: int, ranges: list[Range]) -> list[Range]:
    """Those pages of RANGES that are there."""
    out: list[Range] = []
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        for start, end in ranges:
            file.seek(start // 4096 * 8)
            raw = memoryview(file.read((end - start) // 4096 * 8)).cast("Q")
            for index, entry in enumerate(raw):
                if entry >> 62:
                    page = start + index * 4096
                    if out and out[-1][1] == page:
                        out[-1] = (out[-1][0], page + 4096)
                    else:
                        out.append((page, page + 4096))
    return out


@dataclass
class Dump:
    """A dump that waits for its verdict, everything frozen."""

    process: subprocess.Popen[bytes]
    server: PageServer
    veil: Veil
    log: Path
    sizes: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        return log_of(self.log)


@contextlib.contextmanager
def dump(
    hog: Hog,
    folder: Path,
    sink: Spool | FilteredSink,
    hide: Callable[[int], list[Range]],
    *,
    before_freeze: Callable[[Veil], None] = lambda veil: None,
) -> Iterator[Dump]:
    """criu dump --lazy-pages behind a veil, up to the verdict."""
    work = folder / "d"
    work.mkdir(exist_ok=True)
    with Veil(hide) as veil, PageServer() as server:
        before_freeze(veil)
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
            start_new_session=True,
        )
        server.started()
        veil.started()
        running = InThread(lambda: capture.run(sink, on_complete=complete.set))
        state = Dump(process, server, veil, work / "dump.log")
        try:
            until(lambda: complete.is_set() or process.poll() is not None, state.text)
            yield state
        finally:
            server.drop_to_resume()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
                running.join()


@dataclass
class Moved:
    hog: Hog
    status: Status
    pager: Pager
    veil_hidden: int
    fetched: int


@contextlib.contextmanager
def restore(
    folder: Path, work: Path, source: Spool
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """criu restore --lazy-pages, started and waiting for its first image; killed at the end with what it restored."""
    root = folder / "root"
    serve = Serve(str(work))
    running = InThread(lambda: serve.run(source.source()))
    argv = [
        *(criu(), "restore", *COMMON, "-D", str(work), "-W", str(work), "-o", "restore.log"),
        *("--root", str(root), "--lazy-pages", "--pidfile", str(work / "pid")),
    ]
    # The root has to be a mount point; in a mount namespace of its own, which goes with CRIU.
    script = 'mount --bind "$0" "$0" && exec "$@"'
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    process = subprocess.Popen([*private, *argv], stdin=subprocess.DEVNULL)
    try:
        yield process, work / "restore.log"
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((work / "pid").read_text()), 9)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        running.join()


@contextlib.contextmanager
def moved(
    hog: Hog, folder: Path, *, between: Callable[[Pager], None] = lambda pager: None
) -> Iterator[Moved]:
    """Move it. BETWEEN: called when it runs at its new place, its pages perhaps not all there."""
    work = folder / "r"
    work.mkdir()
    lane_r, lane_w = os.pipe()
    rewriter = Rewriter()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lane_r)
        stack.callback(os.close, lane_w)
        spool = stack.enter_context(Spool())
        store = stack.enter_context(PageStore())
        pager = stack.enter_context(Pager(str(work)))
        process, restore_log = stack.enter_context(restore(folder, work, spool))
        sender = stack.enter_context(PageSender(lane_w))
        receiver = PageReceiver(lane_r, store)
        readers = {}
        for pid in hog.pids():
            readers[pid] = stack.enter_context(TaskReader(pid))
        pids = {task_number(pid): pid for pid in readers}
        receiving = InThread(receiver.until_mark)
        for number, pid in pids.items():
            sender.send(number, readers[pid], populated(pid, carryable(pid)))
        sender.mark()
        receiving.join()

        fetch: dict[int, tuple[Range, ...]] = {}

        def rewrite(name: str, data: bytes) -> bytes:
            number = task_of(name)
            assert number is not None
            hidden = state.veil.hidden[pids[number]]
            plan = plan_lazy(parse_page_map(data, name), hidden, name)
            fetch[number] = plan.fetch
            return build_page_map(plan.page_map.pages_id, plan.page_map.runs)

        for number in pids:
            name = f"pagemap-{number}.img"
            rewriter.add(name.replace(".", r"\."), lambda data, name=name: rewrite(name, data))  # type: ignore[misc]
        state: Dump

        def keep(veil: Veil) -> None:
            nonlocal state
            state = Dump(None, None, veil, folder)  # type: ignore[arg-type]

        dumping = dump(
            hog, folder, FilteredSink(spool, rewriter),
            lambda pid: carryable(pid) if pid in readers else [],
            before_freeze=keep,
        )  # fmt: skip
        with dumping as dumped:
            assert dumped.process.poll() is None, dumped.text()
            receiving = InThread(receiver.until_mark)
            for number, pid in pids.items():
                hidden = list(dumped.veil.hidden[pid])
                sender.send(number, readers[pid], populated(pid, hidden) + list(fetch[number]))
            sender.mark()
            mark = receiving.join()
            assert mark.counts.pages
            for number in pids:
                pager.pages(number, store[number].fd)
            pager.complete()
            spool.end()
            until(
                lambda: "restore finished" in log_of(restore_log).lower() or process.poll() is not None
                or "Restore finished" in restore_log.read_text(errors="replace"),
                lambda: log_of(restore_log),
            )  # fmt: skip
            assert process.poll() is None, log_of(restore_log)
            dumped.server.close_and_kill()
            assert dumped.process.wait(30) == 0, dumped.text()
        hog = Hog(int((work / "pid").read_text()))
        between(pager)
        status = pager.wait(60)
        yield Moved(
            hog, status, pager,
            sum(end - start for pairs in dumped.veil.hidden.values() for start, end in pairs),
            sum(end - start for pairs in fetch.values() for start, end in pairs),
        )  # fmt: skip


__all__ = ["Moved", "dump", "moved", "time"]
