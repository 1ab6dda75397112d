"""Start the workload, dump it, restore it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from images.criu_stream import Capture, Serve
from images.parts import Sink
from images.sources import Source
from tests import needs
from tests.patience import patient
from tests.unit.images.fake_criu import InThread

HERE = Path(__file__).parent


def until(condition: Callable[[], bool], why: Callable[[], str] = str, seconds: float = 60) -> None:
    end = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.01)


class Workload:
    """The tree, seen from outside; pid is that of its first process on the host."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.tmp = Path(f"/proc/{pid}/root/tmp")

    def count(self) -> int:
        try:
            return int((self.tmp / "count").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def goes_on(self) -> None:
        seen = self.count()
        until(lambda: self.count() > seen + 3, lambda: "the workload stands still")

    def verify(self) -> str:
        verdict = self.tmp / "verdict"
        verdict.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        until(verdict.exists, lambda: "no verdict")
        return verdict.read_text()


def first_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


@contextlib.contextmanager
def started(folder: Path, mebibytes: int = 4) -> Iterator[Workload]:
    """The running workload; dead at the end of the block."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    outside = subprocess.Popen(
        ["/usr/bin/python3", HERE / "inside.py", root, HERE / "workload.py", str(mebibytes)],
        stdin=subprocess.DEVNULL,
    )
    with outside:
        try:
            until(lambda: first_child(outside.pid) is not None, lambda: "it did not start")
            workload = Workload(first_child(outside.pid) or 0)
            until(lambda: workload.count() > 0, lambda: "it does not count")
            yield workload
        finally:
            outside.kill()  # and with it, by PDEATHSIG, the tree


def _criu(*arguments: str | Path) -> list[str | Path]:
    program = needs.find_criu()
    assert program is not None
    return [program, *arguments]


DUMP = ("--tcp-established", "--network-lock", "skip", "--manage-cgroups=ignore", "--file-locks")


def log_of(folder: Path) -> str:
    lines = folder.read_text(errors="replace").splitlines() if folder.exists() else []
    return "\n".join(lines[-30:])


def dump(workload: Workload, folder: Path, sink: Sink, **options: object) -> object:
    """criu dump --stream into the sink; returns the CaptureReport."""
    work = folder / "d"
    work.mkdir(exist_ok=True)
    capture = Capture(str(work))
    running = InThread(lambda: capture.run(sink, **options))  # type: ignore[arg-type]
    criu = criu_dump(workload, work)
    report = running.join()
    assert criu.wait(60) == 0, log_of(work / "dump.log")
    return report


def criu_dump(workload: Workload, work: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start criu dump --stream in a work directory that has the streamer's socket."""
    argv = _criu("dump", "--stream", "-D", work, "-t", str(workload.pid), *DUMP, *more)
    return subprocess.Popen([*argv, "-v4", "-o", work / "dump.log"], stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def restored(folder: Path, source: Source) -> Iterator[Workload]:
    """criu restore --stream from the source; the tree is dead at the end of the block."""
    work, root = folder / "r", folder / "root"
    work.mkdir(exist_ok=True)
    pidfile, log = work / "pid", work / "restore.log"
    pidfile.unlink(missing_ok=True)
    serve = Serve(str(work))
    running = InThread(lambda: serve.run(source))
    argv = _criu("restore", "--stream", "-D", work, "--root", root, *DUMP)
    # The root has to be a mount point; in a mount namespace of its own, which goes with CRIU.
    script = 'mount --bind / "$0" && exec "$@"'
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    criu = subprocess.Popen(
        [*private, *argv, "--pidfile", pidfile, "-v4", "-o", log],
        stdin=subprocess.DEVNULL,
    )
    with criu:
        try:
            until(
                lambda: (
                    criu.poll() is not None
                    or (pidfile.exists() and "Restore finished successfully" in log.read_text())
                ),
                lambda: log_of(log),
            )
            assert criu.poll() is None, log_of(log)
            yield Workload(int(pidfile.read_text()))
        finally:
            if criu.poll() is None and pidfile.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pidfile.read_text()), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                criu.wait(10)
            criu.kill()
    running.join()
