"""One `criu dump`, from preparing to the verdict.

    Dumper(...)          the hooks' pipes are there, nothing has started
    start()              CRIU runs and comes to the hook `pre-dump`: nothing is frozen yet
    freeze()             lets it go on; from here the frozen window is open
    dumped()             waits until everything is dumped (hook `post-dump`), tasks still frozen
    verdict_kill() | resume()   the verdict: the tasks die with CRIU's success, or run on

The image files go their own way: the caller runs the streaming protocol's other end on the directory meanwhile.
Whatever happens to us, CRIU ends with the tasks running again: its hooks fail when we are gone (see hook.c), and so
does the stream of images. (A death signal would not do: it comes when the thread that forked ends.) Whatever happens
to CRIU, they run again as well: it has a guardian (see runtime/guard).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime import preload
from runtime.criu import failures, hooks, options
from runtime.criu.binary import Criu, netfilter
from runtime.criu.hooks import Asked, Hooks
from runtime.criu.page_server import PageServer
from runtime.errors import TimedOut
from runtime.guard.guard import Guard
from runtime.guard.shelter import shelter
from runtime.veil.veil import Veil

HOOKS = ("pre-dump", "post-dump")
PATIENCE = 30.0
"""Seconds for CRIU to end when it was told what to do."""
Still = Callable[[], contextlib.AbstractContextManager[None]]
"""Entered around the killing of a CRIU: inside, its tasks must not run, and at the end they are mended."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """For a dump without the pages that others carry: who hides them from CRIU, and the session that ends it.

    Without a session CRIU writes out what nobody hides; with one it leaves that in the tasks as well.
    """

    veil: Veil
    server: PageServer | None


class Dumper:
    """CRIU as our child. Close it: without a verdict that resumes the tasks."""

    def __init__(
        self,
        criu: Criu,
        *,
        pid: int,
        work: Path,
        externals: Iterable[tuple[str, str]],
        files: Iterable[str] = (),
        watched: Iterable[str] = (),
        own_network: bool,
        leave_running: bool,
        target: str,
        programs: Path,
        timeout: int = 20,
        still: Still = contextlib.nullcontext,
        aside: str = "",
    ) -> None:
        """PROGRAMS: where what we compile lies. ASIDE: the cgroup that CRIU runs in, as for shelter()."""
        self._target = target
        self._lazy: Lazy | None = None
        self._aside = aside
        self._guard = Guard(programs)
        self._libraries = [netfilter(programs), *self._guard.libraries]
        self.log = work / "dump.log"
        self._timeout = timeout
        self._still = still
        self._hooks = Hooks(HOOKS)
        # CRIU limits the path of its images' directory; a descriptor of ours has a short one.
        self.directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._argv = options.dump_argv(
            criu.path,
            pid=pid,
            images=f"/proc/{os.getpid()}/fd/{self.directory}",
            log="dump.log",
            externals=externals,
            files=files,
            watched=watched,
            own_network=own_network,
            leave_running=leave_running,
            timeout=timeout,
        )
        self._argv += hooks.script(programs)
        self._process: subprocess.Popen[bytes] | None = None
        self.frozen_ns = 0
        """CLOCK_REALTIME just before the first task was stopped."""
        self.dumped_ns = 0

    @property
    def killed(self) -> bool:
        """Whether CRIU was killed, by us or by others: it could not put back what it had changed."""
        return self._process is not None and (self._process.returncode or 0) < 0

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._kill()
        self._guard.close()
        self._hooks.close()
        os.close(self.directory)

    def leave_pages(self, lazy: Lazy) -> None:
        """Before start(): the pages stay in the tasks; the caller carries them."""
        self._lazy = lazy

    def start(self) -> None:
        """Start CRIU and wait until it is ready to freeze: its own preparations are not part of the frozen window."""
        argv: list[str] = self._argv
        fds: list[int] = []
        server = self._lazy.server if self._lazy is not None else None
        if server is not None:
            argv = [*argv, *server.options]
            fds = [server.inherit]
        if self._lazy is None:
            argv = preload.command(argv, self._libraries, {})
        else:
            argv = self._lazy.veil.wrap(argv, beside=self._libraries)
            fds += self._lazy.veil.pass_fds
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self._hooks.environment, **self._guard.environment},
            pass_fds=[*fds, *self._guard.pass_fds],
            start_new_session=True,
        )
        self._guard.started(self._process.pid)
        for pid in filter(None, (self._process.pid, self._guard.pid)):
            shelter(pid, self._aside)
        if self._lazy is not None:
            self._lazy.veil.started()
        if server is not None:
            server.started()
        self._wait_for("pre-dump", 30.0, lambda: None)

    def freeze(self) -> None:
        self.frozen_ns = time.time_ns()
        self._hooks.answer(0)

    def dumped(self, limit: float, check: Callable[[], None]) -> None:
        """Wait, at most LIMIT seconds, until everything is dumped. CHECK is called now and then and may raise."""
        self.dumped_ns = self._wait_for("post-dump", limit, check).at_ns

    def require_alive(self) -> None:
        """Raises CriuFault if CRIU has ended."""
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            raise failures.translate(self.log, doing="dumping", target=self._target, status=status)

    def verdict_kill(self) -> None:
        """The verdict "it lives on elsewhere": CRIU kills the tasks, as wait_killed() awaits."""
        self._hooks.answer(0)
        if self._lazy is not None and self._lazy.server is not None:
            # With lazy pages it serves them before it comes to its end; we have them all.
            self._lazy.server.close_and_kill()

    def wait_killed(self) -> None:
        """Until CRIU has ended. Raises CriuFault if it failed at that."""
        status = self._finish()
        if status:
            raise failures.translate(
                self.log, doing="ending the dump of", target=self._target, status=status
            )

    def resume(self) -> None:
        """The verdict "it stays": CRIU undoes what it did, and the tasks run on. Fine if it was never started."""
        if self._process is None:
            return
        self._hooks.answer(1)
        if self._lazy is not None and self._lazy.server is not None:
            self._lazy.server.drop_to_resume()
        self._finish()

    def finish_running(self) -> None:
        """For a dump that leaves the tasks running: let CRIU end well."""
        self.verdict_kill()
        self.wait_killed()

    def _finish(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return self._kill()

    def _kill(self) -> int:
        """End a CRIU that doesn't end by itself."""
        assert self._process is not None
        with self._still():
            self._process.kill()
            return self._process.wait()

    def _wait_for(self, action: str, limit: float, check: Callable[[], None]) -> Asked:
        assert self._process is not None
        until = time.monotonic() + limit
        while time.monotonic() < until:
            check()
            asked = self._hooks.next(0.05)
            if asked is not None and asked.action == action:
                return asked
            self.require_alive()
        self._kill()
        raise TimedOut(
            doing="dumping",
            target=self._target,
            why=f"CRIU did not come to {action} in {limit:g} s; the container runs on",
            hint=f"its log is {self.log}",
            retry=True,
        )
