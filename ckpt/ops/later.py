"""The memory that comes later, as the agent has to do with it: lanes for it, a fetch, and what becomes of its end.

A fetch begins when everything else is here, before anything runs, since the restore itself may need a page. It is over
when every page is in place; the agent says "running" only then. When the link is lost, the tasks wait for what they
touch, the agent ends, and the source sends another one: that begins again, with the notes that the pager has.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckpt.ops import arrived
from ckpt.ops.fetch import Fetch, PagesLost
from ckpt.ops.host import Host
from ckpt.ops.journal import Entry, Journal
from ckpt.ops.landing import Intake, Landing
from ckpt.ops.lend import TOPIC
from ckpt.ops.preflight import available_memory
from runtime.container.record import LIVE, Container
from runtime.errors import NotFound, SystemFault
from runtime.pagecache.store import PageStore
from runtime.pager.client import Ended, Upstream
from transport.conversation import Conversation
from transport.errors import LinkLost, TransportFault
from transport.lanes import LaneReader
from transport.messages import make
from transport.protocol import Lost, State

log = logging.getLogger(__name__)


class Gone(SystemFault):
    """The container ended here before all of its memory had come, and not by itself."""


class PagesLater:
    """LANE: the next that the source announces for who asked with that word. STOPPED: all is given up. Close it."""

    def __init__(
        self,
        host: Host,
        conversation: Callable[[], Conversation],
        lane: Callable[[threading.Event, str], LaneReader],
        stopped: threading.Event,
    ) -> None:
        self._host = host
        self._conversation = conversation
        self._lane = lane
        self._stopped = stopped
        self._lanes: list[LaneReader] = []
        self._intakes: list[Intake] = []
        self._store: PageStore | None = None
        self._landing: Landing | None = None
        self._upstream: Upstream | None = None
        self._fetch: Fetch | None = None
        self._ended: Ended | None = None

    def close(self) -> None:
        """Tasks that wait for a page go on waiting."""
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        for lane in self._lanes:
            lane.abort()
        for intake in self._intakes:
            intake.close()
        self._lanes, self._intakes = [], []
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        if self._store is not None:
            self._store.close()
            self._store = None

    def hear(self, word: Mapping[str, Any]) -> None:
        if self._fetch is not None:
            self._fetch.hear(word)

    # ---- the agent that restores

    def expect(self, landing: Landing, urgent: LaneReader) -> None:
        """Of the two lanes the first is LANDING's."""
        self._landing = landing
        self._lanes.append(urgent)
        self._intakes.append(Intake(urgent.fd, landing.store))

    @property
    def expected(self) -> bool:
        return self._landing is not None

    def begin(self, directory: Path) -> None:
        """What is still to come is known, and the pager in the work directory of the restore has its orders."""
        assert self._landing is not None
        upstream = self._reach(directory)
        if upstream is None:
            return
        for pages in upstream.pages.values():
            pages.close()  # they are those of the landing
        intakes = [self._landing.intake, *self._intakes]
        self._fetch = Fetch(self._landing.store, upstream, intakes, self._say)

    def check(self) -> None:
        """Before anything runs: raises what went wrong."""
        if self._ended is not None:
            raise self._ended
        if self._fetch is not None and self._fetch.fault is not None:
            raise self._fetch.fault

    # ---- another agent

    def begin_again(self, entry: Entry, stop: threading.Event) -> int:
        """Go on with what another agent began, and let it run if it doesn't yet. Returns when it ran.

        Raises Gone when it is not here any more; what else goes wrong ends the link, and the source tries again.
        """
        try:
            return self._begin_again(entry, stop)
        except Gone:
            raise
        except Exception as fault:
            self._give_up_link(fault)
            raise

    def _begin_again(self, entry: Entry, stop: threading.Event) -> int:
        container = self._arrived(entry)
        state = container.status().state
        if state == "stopped":
            return time.time_ns()  # its program has ended: it needs no memory
        if state not in LIVE:
            raise gone(entry)
        upstream = self._reach(container.paths.run / "criu")
        if self._ended is not None:
            return time.time_ns()
        if upstream is not None:
            mark = secrets.token_hex(4)  # lanes for an agent before us may be announced still
            self._say({"do": "lanes", "for": mark})
            self._lanes = [self._lane(stop, mark), self._lane(stop, mark)]
            self._store = PageStore(limit=available_memory())
            for task, pages in upstream.pages.items():
                self._store.adopt(task, pages)
            self._intakes = [Intake(lane.fd, self._store) for lane in self._lanes]
            self._fetch = Fetch(self._store, upstream, self._intakes, self._say)
        return arrived.release(self._host, entry.id)

    def _arrived(self, entry: Entry) -> Container:
        try:
            return arrived.find(self._host, entry.id)
        except NotFound:
            raise gone(entry) from None

    # ---- both

    def all(self, journal: Journal) -> dict[str, Any]:
        """It runs: until every page is in place. Raises what broke the link, which then is given up."""
        facts = journal.entry.facts
        try:
            if self._ended is not None:
                raise self._ended
            if self._fetch is None:
                return {"ran": facts["ran"], "whole": time.time_ns()}
            fetched = self._fetch.wait(self._check_link)
        except (PagesLost, Ended) as fault:
            return {"ran": facts["ran"], "lost": self._lose(journal, str(fault))}
        except Exception as fault:
            self._give_up_link(fault)
            raise
        return {"ran": facts["ran"], "whole": fetched.whole_ns, "faults": fetched.faults}

    def _give_up_link(self, fault: Exception) -> None:
        log.warning("not all pages are here: %s", fault)
        log.debug("why", exc_info=True)
        lost = fault if isinstance(fault, TransportFault) else _broken(fault)
        self._conversation().tell(Lost(lost))

    def _lose(self, journal: Journal, why: str) -> str:
        """It can't go on, and must not with what isn't its memory."""
        lose(self._host, journal, why)
        return why

    def _reach(self, directory: Path) -> Upstream | None:
        try:
            self._upstream = Upstream.connect(directory)
        except Ended as fault:
            self._ended = fault
        return self._upstream

    def _say(self, word: Mapping[str, Any]) -> None:
        self._conversation().send(make("note", topic=TOPIC, body=dict(word)))

    def _check_link(self) -> None:
        if self._stopped.is_set() or self._conversation().machine.position != "release":
            raise _broken("the link was lost")


def lose(host: Host, journal: Journal, why: str) -> None:
    """Kill a container whose memory will never be whole, and remember why."""
    journal.entry.facts["lost"] = why
    journal.write(State.COMMITTED)
    with contextlib.suppress(NotFound):
        host.cgroup(arrived.find(host, journal.entry.id)).kill()


def gone(entry: Entry) -> Gone:
    return Gone(
        doing="fetching the memory of",
        target=f"container {entry.name}",
        why="it ended here before all of its memory had come",
        hint="its source has the memory of the moment when it moved: ckpt recover --assume aborted there",
    )


def _broken(why: object) -> LinkLost:
    return LinkLost(doing="fetching", target="pages", why=str(why), retry=True)
