"""Starting the pager and giving it its orders."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

from runtime.errors import SystemFault, TimedOut, from_os_error

_PROGRAM = Path(__file__).with_name("__main__.py")
SOCKET = "lazy-pages.socket"
"""In the work directory (`-W`, else `-D`) of `criu restore --lazy-pages`."""
_MAX_ANSWER = 4096
_STARTING = 30.0


@dataclass(frozen=True, slots=True)
class Status:
    """What the pager has done. In bytes: placed, missing, dropped. done: it has ended well.

    dropped: pages for which the restored task has no memory that CRIU registered. Before the tasks run this must be 0:
    a range was hidden that CRIU doesn't restore lazily. Later a task may have given memory back.
    fork_events: False means that a forked child would get zeros: let nothing run before missing is 0.
    """

    tasks: int
    ended: int
    faults: int
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
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(theirs.close)
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(self._control.close)
            handed = (theirs.fileno(), listener.fileno())
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

    def pages(self, task: int, fd: int) -> None:
        """The pages of a task are in this memfd (pagecache.TaskPages.fd); more may be written to it until complete().

        Task: the process id as the container sees it. Raises RuntimeFault, as do all of these.
        """
        self._ask({"op": "pages", "task": task}, fd)

    def complete(self) -> Status:
        """All pages are in the memfds: answer faults from now on."""
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

    def _ask(self, order: dict[str, object], fd: int | None = None) -> Status:
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], [] if fd is None else [fd])
        except BrokenPipeError:
            pass  # it has ended; its last word may be waiting for us
        except OSError as error:
            raise from_os_error(error, doing="ordering", target="the pager") from error
        return self._receive(_STARTING)

    def _receive(self, timeout: float) -> Status:
        self._control.settimeout(timeout)
        try:
            data = self._control.recv(_MAX_ANSWER)
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


def _listen(directory: str | int) -> socket.socket:
    """Bound through a descriptor: the path may be longer than a socket's may."""
    own = (
        os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        if isinstance(directory, str)
        else directory
    )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=own)
        listener.bind(f"/proc/self/fd/{own}/{SOCKET}")
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise from_os_error(error, doing="listening on", target=SOCKET) from error
    finally:
        if isinstance(directory, str):
            os.close(own)
    return listener
