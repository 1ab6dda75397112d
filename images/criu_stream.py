"""Both directions of ``criu dump|restore --stream``: we are the streamer, CRIU connects to us.

Dump (Capture)::

    CRIU                                   Capture
    connect streamer-capture.sock ───────▶ accept
    request "core-1.img" ────────────────▶ sink.open("core-1.img")
    1 byte + read end of a pipe ─────────▶ register with the selector
    page data into the pipe ─────────────▶ part.take(...) as it comes        (several at once)
    closes the pipe ─────────────────────▶ part.close()
    ...
    "inventory.img", the last one ───────▶ complete: told through on_complete
    exits (or waits in a hook) ──────────▶ end of the socket: run() returns

Restore (Serve)::

    CRIU                                   Serve
    request "inventory.img" ─────────────▶ source.open(...): a reader, None, or PENDING
    ◀────────────────────── exists yes/no
    1 byte + write end of a pipe ────────▶ reader.move(pipe) while the pipe takes bytes
    reads, closes early if it likes ─────▶ EPIPE is normal

With the answer may go a descriptor (along), for a CRIU that was taught to take it.

Several of CRIU's processes share the one socket during a restore, each with its own open pipe, and
they wait for one another: a streamer that filled one pipe after the other would deadlock. So both
sides are loops over a selector.

What goes wrong: CRIU dies (end of socket and pipes: not an error here, the caller looks at CRIU's
exit status and at ``complete``); the tasks run on before all bytes have been taken (``dump
--leave-running``: what lies in a pipe is still the tasks' own memory, so CRIU has to be held in its
post-dump hook until on_complete, see moving); CRIU or the place the bytes go to stalls (CRIU's own
--timeout doesn't cover that and the tasks would stay frozen: our watchdog raises Stalled, then the
caller kills CRIU, which resumes the tasks); anything that isn't this protocol is a StreamerFault.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from images.criu_wire import (
    CAPTURE_SOCKET,
    SERVE_SOCKET,
    Listener,
    receive_pipe,
    receive_request,
    send_reply,
)
from images.errors import Cancelled, Stalled
from images.moving import STALL, Mover, available, enlarge_pipe
from images.parts import INVENTORY, Part, Sink
from images.sources import PENDING, DirectorySource, Pending, Reader, Source


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What a dump gave. files: (name, bytes) in the order in which they ended.

    complete: inventory.img came whole and nothing was left open. A dump succeeded if this is so
    and CRIU exited with 0.
    """

    files: tuple[tuple[str, int], ...]
    complete: bool

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)


@dataclass(slots=True)
class _Incoming:
    name: str
    fd: int
    part: Part
    size: int = 0


class Capture:
    """The receiving end of ``criu dump --stream -D directory``. The socket exists once made.

    directory: path or directory descriptor; the path that CRIU gets must be short (85 characters).
    """

    def __init__(self, directory: str | int) -> None:
        self._listener = Listener(directory, CAPTURE_SOCKET)
        self._open: dict[int, _Incoming] = {}
        self._files: list[tuple[str, int]] = []
        self._inventory = False

    @property
    def complete(self) -> bool:
        """Every image of the dump is in the sink. True may come well before run() returns."""
        return self._inventory and not self._open

    def close(self) -> None:
        """Only needed if run() is never called."""
        self._listener.close()

    def run(
        self,
        sink: Sink,
        *,
        stall: float = STALL,
        cancel_fd: int | None = None,
        on_file: Callable[[str, int], None] | None = None,
        on_complete: Callable[[], None] | None = None,
    ) -> CaptureReport:
        """Take all images into sink until CRIU closes its socket and every pipe.

        stall: seconds without any byte from CRIU, or into the sink, before Stalled is raised;
        after ``complete`` there is no such limit, since CRIU may be waiting in a hook. cancel_fd:
        Cancelled is raised when it becomes readable. on_file(name, bytes) after each file,
        on_complete() once; both are called from this loop and must not block for long.
        """
        mover = Mover(
            doing="receiving CRIU's images", target="dump", stall=stall, cancel_fd=cancel_fd
        )
        told = False
        with mover, selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(self._abandon)
            stack.callback(self._listener.close)
            peer = stack.enter_context(self._listener.accept(mover))
            selector.register(peer, selectors.EVENT_READ)
            if cancel_fd is not None:
                selector.register(cancel_fd, selectors.EVENT_READ)
            listening = True
            while listening or self._open:
                ready = selector.select(None if self.complete else stall)
                if not ready:
                    raise Stalled(
                        doing=mover.doing,
                        target=mover.target,
                        why=f"CRIU sent nothing for {stall:g} s",
                        hint="the tasks run on once CRIU is killed",
                        retry=True,
                    )
                for key, _ in ready:
                    if key.fd == cancel_fd:
                        raise Cancelled(doing=mover.doing, target=mover.target, why="cancelled")
                    if key.fd == peer.fileno():
                        listening = self._accept_file(peer, selector, sink, mover)
                        if not listening:
                            selector.unregister(peer)
                    elif not self._take(self._open[key.fd], mover):
                        selector.unregister(key.fd)
                        self._finish(key.fd, on_file)
                if self.complete and not told:
                    told = True
                    if on_complete is not None:
                        on_complete()
        return CaptureReport(tuple(self._files), self.complete)

    def _accept_file(
        self, peer: socket.socket, selector: selectors.BaseSelector, sink: Sink, mover: Mover
    ) -> bool:
        name = receive_request(peer, mover)
        if name is None:
            return False
        fd = receive_pipe(peer, mover)
        try:
            os.set_blocking(fd, False)
            enlarge_pipe(fd)
            part = sink.open(name)
        except BaseException:
            os.close(fd)
            raise
        self._open[fd] = _Incoming(name, fd, part)
        selector.register(fd, selectors.EVENT_READ)
        if name == INVENTORY:
            self._inventory = False
        return True

    def _take(self, incoming: _Incoming, mover: Mover) -> bool:
        """Move what lies in the pipe; False at its end."""
        count = available(incoming.fd)
        if not count:
            # Readable without bytes is the end, unless CRIU wrote between the two looks.
            poller = select.poll()
            poller.register(incoming.fd, select.POLLIN)
            return any(events & select.POLLIN for _, events in poller.poll(0))
        incoming.part.take(mover, incoming.fd, count)
        incoming.size += count
        return True

    def _finish(self, fd: int, on_file: Callable[[str, int], None] | None) -> None:
        incoming = self._open[fd]
        incoming.part.close()
        del self._open[fd]
        os.close(fd)
        self._files.append((incoming.name, incoming.size))
        if incoming.name == INVENTORY and incoming.size:
            self._inventory = True
        if on_file is not None:
            on_file(incoming.name, incoming.size)

    def _abandon(self) -> None:
        for incoming in self._open.values():
            incoming.part.abandon()
            os.close(incoming.fd)
        self._open.clear()


Along = Callable[[str], int | None]
"""Asked for each image that there is: a descriptor for CRIU, or None. It may wait, and everything waits with it."""


@dataclass(frozen=True, slots=True)
class ServeReport:
    """What a restore asked for. asked: (name, existed) in order; size: bytes given."""

    asked: tuple[tuple[str, bool], ...]
    size: int


@dataclass(slots=True)
class _Outgoing:
    name: str
    fd: int
    reader: Reader
    parked: bool = False
    size: int = 0


@dataclass(slots=True)
class _Service:
    """The state of one run."""

    source: Source
    peer: socket.socket
    selector: selectors.BaseSelector
    mover: Mover
    along: Along
    open: dict[int, _Outgoing] = field(default_factory=dict)
    asked: list[tuple[str, bool]] = field(default_factory=list)
    waiting_for: str | None = None
    size: int = 0


class Serve:
    """The giving end of ``criu restore --stream -D directory``. The socket exists once made."""

    def __init__(self, directory: str | int) -> None:
        self._listener = Listener(directory, SERVE_SOCKET)

    def close(self) -> None:
        """Only needed if run() is never called."""
        self._listener.close()

    def run(
        self,
        source: Source,
        *,
        stall: float = STALL,
        cancel_fd: int | None = None,
        on_file: Callable[[str, bool], None] | None = None,
        along: Along = lambda name: None,
    ) -> ServeReport:
        """Answer CRIU until it closes the socket and has read or closed every pipe.

        A request for a name that hasn't arrived waits, others go on meanwhile. stall: seconds that
        CRIU may leave a pipe full, or take to connect. Without an open pipe there is no limit: CRIU
        may be waiting in a hook, and a source that is being filled has its own watchdog.
        on_file(name, exists) at each answer.
        """
        mover = Mover(
            doing="giving CRIU its images", target="restore", stall=stall, cancel_fd=cancel_fd
        )
        with mover, selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(self._listener.close)
            peer = stack.enter_context(self._listener.accept(mover))
            state = _Service(source, peer, selector, mover, along)
            stack.callback(_close_all, state)
            selector.register(peer, selectors.EVENT_READ)
            if cancel_fd is not None:
                selector.register(cancel_fd, selectors.EVENT_READ)
            if source.news is not None:
                selector.register(source.news, selectors.EVENT_READ)
            listening = True
            while listening or state.open:
                ready = selector.select(stall if _owes_criu(state) else None)
                if not ready:
                    raise Stalled(
                        doing=mover.doing,
                        target=mover.target,
                        why=f"CRIU read nothing for {stall:g} s",
                        retry=True,
                    )
                for key, _ in ready:
                    if key.fd == cancel_fd:
                        raise Cancelled(doing=mover.doing, target=mover.target, why="cancelled")
                    if key.fd == source.news:
                        source.took_news()
                        _unpark(state)
                        if state.waiting_for is not None:
                            _answer(state, state.waiting_for, on_file)
                    elif key.fd == peer.fileno():
                        name = receive_request(peer, mover)
                        if name is None:
                            listening = False
                            state.waiting_for = None
                            selector.unregister(peer)
                        else:
                            _answer(state, name, on_file)
                    elif key.fd in state.open:
                        _give(state, state.open[key.fd])
            return ServeReport(tuple(state.asked), state.size)


def _owes_criu(state: _Service) -> bool:
    return any(not outgoing.parked for outgoing in state.open.values())


def _answer(state: _Service, name: str, on_file: Callable[[str, bool], None] | None) -> None:
    reader = state.source.open(name)
    if isinstance(reader, Pending):
        # CRIU's other processes take turns on this socket, so that none can ask before this
        # one has its answer. But it may hang up: keep listening.
        state.waiting_for = name
        return
    state.waiting_for = None
    try:
        send_reply(state.peer, state.mover, reader is not None, _along(state, name, reader))
        state.asked.append((name, reader is not None))
        if on_file is not None:
            on_file(name, reader is not None)
        if reader is None:
            return
        fd = receive_pipe(state.peer, state.mover)
    except BaseException:
        if reader is not None:
            reader.close()
        raise
    state.open[fd] = _Outgoing(name, fd, reader)
    os.set_blocking(fd, False)
    enlarge_pipe(fd)
    state.selector.register(fd, selectors.EVENT_WRITE)


def _along(state: _Service, name: str, reader: Reader | None) -> int | None:
    return state.along(name) if reader is not None else None


def _give(state: _Service, outgoing: _Outgoing) -> None:
    """Fill the pipe once; close it at the end of the image."""
    try:
        moved = outgoing.reader.move(outgoing.fd)
    except BlockingIOError:
        return
    except BrokenPipeError:
        moved = 0  # CRIU closes what it has seen enough of
    if moved is None:
        # Nothing to give until news comes; a writable pipe would make the loop spin.
        outgoing.parked = True
        state.selector.unregister(outgoing.fd)
    elif moved:
        outgoing.size += moved
        state.size += moved
    else:
        state.selector.unregister(outgoing.fd)
        _close(state, outgoing)


def _unpark(state: _Service) -> None:
    for outgoing in state.open.values():
        if outgoing.parked:
            outgoing.parked = False
            state.selector.register(outgoing.fd, selectors.EVENT_WRITE)


def _close(state: _Service, outgoing: _Outgoing) -> None:
    del state.open[outgoing.fd]
    os.close(outgoing.fd)
    outgoing.reader.close()


def _close_all(state: _Service) -> None:
    for outgoing in list(state.open.values()):
        _close(state, outgoing)


__all__ = [
    "PENDING",
    "Capture",
    "CaptureReport",
    "DirectorySource",
    "Serve",
    "ServeReport",
]
