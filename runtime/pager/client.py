"""Starting the pager and giving it its orders."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import SystemFault, TimedOut, from_os_error
from runtime.packets import past_reset
from runtime.pagecache.store import Owed, TaskPages
from runtime.pager.worker import FETCHERS

_PROGRAM = Path(__file__).with_name("__main__.py")
SOCKET = "lazy-pages.socket"
"""In the work directory (`-W`, else `-D`) of `criu restore --lazy-pages`."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_ANSWER = 4096
_STARTING = 30.0


@dataclass(frozen=True, slots=True)
class Status:
    """What the pager has done. In bytes: placed, missing, dropped. done: it has ended well.

    dropped: pages for which the restored task has no memory that CRIU registered. Before the tasks run this must be 0:
    a range was hidden that CRIU doesn't restore lazily. Later a task may have given memory back.
    awaited: how many of the faults had to wait for a page that was still to come.
    fork_events: False means that a forked child would get zeros: let nothing run before missing is 0.
    """

    tasks: int
    ended: int
    faults: int
    awaited: int
    placed: int
    missing: int
    dropped: int
    fork_events: bool
    complete: bool
    finished: bool
    trouble: str
    worker: int
    done: bool


class Pager:
    """A running pager. It outlives this object, and us, as soon as complete() was called.

    directory: the work directory of the restore, path or descriptor; the socket is there when this returns. errors:
    where its last words go. Before complete() it ends with this object; afterwards when all pages are in place.
    """

    def __init__(
        self, directory: str | int, *, errors: BinaryIO | int = subprocess.DEVNULL
    ) -> None:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listen(directory))
            fetchers = stack.enter_context(_listen(directory, FETCHERS, kind=socket.SOCK_SEQPACKET))
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(theirs.close)
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(self._control.close)
            own = (
                os.open(directory, _DIRECTORY) if isinstance(directory, str) else os.dup(directory)
            )
            stack.callback(os.close, own)
            handed = (theirs.fileno(), listener.fileno(), fetchers.fileno(), own)
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, handed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=handed,
                cwd="/",
                timeout=_STARTING,
            )
            if done.returncode:
                raise SystemFault(
                    doing="starting",
                    target="the pager",
                    why=f"it ended with status {done.returncode}",
                )
            undo.pop_all()

    def __enter__(self) -> Pager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave it alone: it goes on if it has its orders, and ends if it hasn't."""
        self._control.close()

    def pages(self, task: int, pages: TaskPages, *, known: bool = False) -> None:
        """The pages of a task are in this memfd; more may be written to it until complete(), and what is owed after.

        Task: the process id as the container sees it. KNOWN: `pages.known` is all that is there, and nothing more will
        be written; else the pager looks itself. Raises RuntimeFault, as do all of these.
        """
        with contextlib.ExitStack() as stack:
            fds = {"pages": pages.fd}
            if pages.owed is not None:
                fds["owed"] = pages.owed.fd
            if known:
                fds["runs"] = os.memfd_create("ckpt-runs", os.MFD_CLOEXEC)
                stack.callback(os.close, fds["runs"])
                pages.known.save(fds["runs"])
            self._ask({"op": "pages", "task": task, "fds": list(fds)}, list(fds.values()))

    def complete(self) -> Status:
        """All pages are in the memfds, or noted as still to come: answer faults from now on."""
        return self._ask({"op": "complete"})

    def fill(self) -> Status:
        """CRIU has restored everything (its hook post-restore): place all pages. Needn't be called: without it the
        filling begins when CRIU lets the tasks run."""
        return self._ask({"op": "fill"})

    def status(self) -> Status:
        return self._ask({"op": "status"})

    def wait(self, timeout: float) -> Status:
        """Until all pages are in place and CRIU has finished; at most TIMEOUT seconds, then TimedOut."""
        until = time.monotonic() + timeout
        while True:
            status = self._receive(max(until - time.monotonic(), 0.001))
            if status.done:
                return status

    def _ask(self, order: dict[str, object], fds: Sequence[int] = ()) -> Status:
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], list(fds))
        except BrokenPipeError:
            pass  # it has ended; its last word may be waiting for us
        except OSError as error:
            raise from_os_error(error, doing="ordering", target="the pager") from error
        return self._receive(_STARTING)

    def _receive(self, timeout: float) -> Status:
        self._control.settimeout(timeout)
        try:
            data = past_reset(self._control.recv, _MAX_ANSWER)
        except TimeoutError:
            raise TimedOut(
                doing="waiting for", target="the pager", why=f"no answer within {timeout:g} s"
            ) from None
        except OSError as error:
            raise from_os_error(error, doing="waiting for", target="the pager") from error
        if not data:
            raise SystemFault(doing="waiting for", target="the pager", why="it has ended")
        values = json.loads(data)
        return Status(**{field.name: values[field.name] for field in fields(Status)})


class Ended(SystemFault):
    """The pager is gone although pages were still to come: the kernel gives its tasks zeros in their place."""


class Upstream:
    """The pager's connection to who fetches pages that are still to come: one at a time, a new one replaces it.

    pages: by task, as the pager has them; the caller owns them. None from connect(): the pager has ended well, since
    every page is in place.
    """

    def __init__(self, sock: socket.socket, directory: Path) -> None:
        self._sock = sock
        self._directory = directory
        self._sending = threading.Lock()
        self.pages: dict[int, TaskPages] = {}
        while "tasks" not in self._hear(_STARTING):
            pass

    @classmethod
    def connect(cls, directory: Path) -> Upstream | None:
        """DIRECTORY: the restore's work directory. Raises Ended, TimedOut, SystemFault."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = os.open(directory, _DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{own}/{FETCHERS}")
            return cls(sock, directory)
        except (OSError, Ended) as error:
            sock.close()
            if ended_well(directory):
                return None
            raise Ended(doing="reaching", target="the pager", why=str(error)) from error
        finally:
            os.close(own)

    def close(self) -> None:
        """The pager goes on with what it has; whoever needs more waits for the next."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def here(self, task: int, ranges: Sequence[tuple[int, int]]) -> None:
        """These pages have come: place them, and wake who waits. From any thread. Raises Ended.

        A page may come twice, asked for by a fault and in its turn: the second may find the pager done.
        """
        word = json.dumps({"task": task, "here": list(ranges)}).encode()
        try:
            with self._sending:
                self._sock.send(word)
        except OSError as error:
            if not ended_well(self._directory):
                raise self._gone() from error

    def hear(self, timeout: float) -> dict[str, Any]:
        """The next word: {"want": [task, address]}, or {"done": true, "faults": number}; {} if none came in time.

        Raises Ended.
        """
        try:
            return self._hear(timeout)
        except TimedOut:
            return {}
        except Ended:
            if ended_well(self._directory):
                return {"done": True, "faults": 0}
            raise

    def _hear(self, timeout: float) -> dict[str, Any]:
        self._sock.settimeout(timeout)
        try:
            data, fds = past_reset(socket.recv_fds, self._sock, _MAX_ANSWER, 2)[:2]
        except TimeoutError:
            raise TimedOut(
                doing="waiting for", target="the pager", why=f"no word within {timeout:g} s"
            ) from None
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        word: dict[str, Any] = json.loads(data)
        if fds:
            self.pages[word["task"]] = TaskPages(fds[0], Owed(fds[1]))
        return word

    def _gone(self) -> Ended:
        return Ended(doing="listening to", target="the pager", why="it has ended")


def ended_well(directory: Path) -> bool:
    """Whether the pager of this restore has done all that it had to do."""
    return not (directory / FETCHERS).exists()


def _listen(
    directory: str | int, name: str = SOCKET, *, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """Bound through a descriptor: the path may be longer than a socket's may."""
    own = (
        os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        if isinstance(directory, str)
        else directory
    )
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=own)
        listener.bind(f"/proc/self/fd/{own}/{name}")
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise from_os_error(error, doing="listening on", target=name) from error
    finally:
        if isinstance(directory, str):
            os.close(own)
    return listener
