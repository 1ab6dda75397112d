"""How fast the way to the other host is: the very way that a warm migration's memory takes, tried for a second.

    source                                       destination
    opens a lane as a migration does
    note try {token} ──────────────────────────▶ Trial: takes the lane, keeps pages as a migration does
    pages ═════════════════════════════════════▶ (a PageStore: memory is touched for the first time, as it will be)
    mark  ═════════════════════════════════════▶
    note tried {} ─────────────────────────────▶ how many marks have come
    note tried {done} ─────────────────────────▶ everything is given back

The pages are made for it: random bytes first, then some that pack as well as a sample of the container's did. None of
the container's own memory leaves its host for a forecast.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ckpt.ops.forecast import ROUNDS, STREAM, Way
from ckpt.ops.landing import Landing
from ckpt.ops.observe import Sample
from runtime.pagesource.read import TaskReader
from runtime.pagesource.send import PageSender
from runtime.pagesource.wire import PAGE
from transport.conversation import Conversation
from transport.errors import LinkLost, TransportFault
from transport.lane_host import LaneHost
from transport.lanes import LaneReader, LaneWriter
from transport.messages import make

SPAN = 0.5
"""Seconds of sending each kind of pages: TCP has found its pace by then, and buffers of some MiB no longer count."""
REGION = 16 << 20
_PIECE = 1 << 20
LIMIT = 512 << 20
"""Bytes of memory that a trial may take at the destination."""
PATIENCE = 60.0
PACKS = 0.95
"""Memory of which more than this share would travel is as good as random."""


class Trial:
    """The destination's half. Ends with close(), or by itself when the lane does."""

    def __init__(self, lanes: LaneHost, token: str, timeout: float, memory: int) -> None:
        self._over = threading.Event()
        self._taken: tuple[LaneReader, Landing] | None = None
        self._fault = ""
        self._thread = threading.Thread(
            target=self._run, args=(lanes, token, timeout, memory), name="trial", daemon=True
        )
        self._thread.start()

    def _run(self, lanes: LaneHost, token: str, timeout: float, memory: int) -> None:
        try:
            lane = lanes.accept(token, timeout)
        except TransportFault as fault:
            self._fault = str(fault)
            return
        landing = Landing(lane.fd, limit=min(LIMIT, memory // 4))
        self._taken = lane, landing
        self._over.wait()
        lane.abort()
        landing.close()

    @property
    def marks(self) -> int:
        """How many have come."""
        return self._taken[1].intake.marks if self._taken is not None else 0

    @property
    def trouble(self) -> str:
        """Why no more will come."""
        fault = self._taken[1].intake.fault if self._taken is not None else None
        return str(fault) if fault is not None else self._fault

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def probe(conversation: Conversation, lane: LaneWriter, sample: Sample, asking: float) -> Way:
    """Try LANE, which was offered and not yet announced. ASKING: seconds for an answer. Raises TransportFault."""
    conversation.ask(make("note", topic="try", body={"token": lane.token}), asking)
    with _Pages() as pages, PageSender(lane.fd) as sender:
        try:
            course = _Course(conversation, sender, pages, asking)
            # The connection warms up, the destination makes its threads.
            course.run(0.0, 1.0, span=0.1)
            rate, _ = course.run(0.0, 1.0)
            pace, share = rate, 1.0
            if (1.0 - sample.zeros) / sample.ratio < PACKS:
                pace, share = course.run(sample.zeros, sample.ratio)
            round_trip = course.round_trip()
            conversation.ask(make("note", topic="tried", body={"done": True}), asking)
        finally:
            sender.abort()
    lane.abort()
    basis = f"{rate / 1e6:.0f} MB/s measured over the {lane.kind} lane"
    if share < PACKS:
        basis += f", {pace / 1e6:.0f} MB/s of memory that packs like this container's"
    return Way(rate, pace * ROUNDS, share, round_trip, lane.kind, basis, stream=rate * STREAM)


class _Pages:
    """Memory of our own to be sent."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, REGION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.reader = TaskReader(os.getpid())

    def __enter__(self) -> _Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def fill(self, zeros: float, ratio: float) -> None:
        """Of all pages the share ZEROS is zeros; the others pack by RATIO, and no two are equal."""
        self._map[:] = bytes(REGION)
        random = max(16, min(PAGE, round(PAGE / ratio)))
        noise = os.urandom(REGION // PAGE * random)
        for number in range(REGION // PAGE):
            if (number * 37 % 100) >= zeros * 100:
                at = number * PAGE
                # At its end: a page is known for one of zeros by words of its beginning and middle.
                self._map[at + PAGE - random : at + PAGE] = noise[
                    number * random : (number + 1) * random
                ]


class _Course:
    def __init__(
        self, conversation: Conversation, sender: PageSender, pages: _Pages, asking: float
    ) -> None:
        self._conversation = conversation
        self._sender = sender
        self._pages = pages
        self._asking = asking
        self._marks = 0
        self._task = 0
        self._filled: tuple[float, float] | None = None

    def run(self, zeros: float, ratio: float, *, span: float = SPAN) -> tuple[float, float]:
        """(bytes of memory per second, bytes on the lane for each of them), from the first page to its arrival."""
        if self._filled != (zeros, ratio):
            self._pages.fill(zeros, ratio)
            self._filled = zeros, ratio
        before, sent = self._sender.written, 0
        began = time.monotonic()
        while time.monotonic() - began < span and sent < LIMIT // 4:
            # Under another task's number each time: memory that is new to the destination.
            self._task += 1
            for at in range(self._pages.start, self._pages.start + REGION, _PIECE):
                self._sender.send(self._task, self._pages.reader, [(at, at + _PIECE)], quick=True)
                sent += _PIECE
                if time.monotonic() - began >= span:
                    break
        self._sender.mark()
        self._sender.flush()
        self._marks += 1
        self._await(lambda answer: int(answer.get("marks", 0)) >= self._marks)
        return sent / (time.monotonic() - began), (self._sender.written - before) / sent

    def _await(self, enough: Callable[[dict[str, Any]], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._tried()
            if enough(answer):
                return
            trouble = str(answer.get("trouble", ""))
            if trouble or time.monotonic() > until:
                raise LinkLost(
                    doing="trying", target="the lane", why=trouble or "it stalls", retry=True
                )

    def _tried(self) -> dict[str, Any]:
        note = make("note", topic="tried", body={})
        found: dict[str, Any] = self._conversation.ask(note, self._asking)["body"]
        return found

    def round_trip(self) -> float:
        """Seconds: the quickest of a few."""
        best = 60.0
        for _ in range(5):
            began = time.monotonic()
            self._tried()
            best = min(best, time.monotonic() - began)
        return best
