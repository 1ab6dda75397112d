"""The memory of a container that is migrated, as its source has to do with it.

cold   nothing: CRIU writes all of it into the images
warm   copied in rounds while the container runs (carry.py), on a lane of its own
lazy   left where it is, and lent once the container runs at the destination (lend.py), on two lanes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ckpt.ops import telling
from ckpt.ops.carry import Carrier, Check
from ckpt.ops.carry_shared import SharedCarrier
from ckpt.ops.departure import Departure
from ckpt.ops.host import Host
from ckpt.ops.lend import TOPIC, Debt, Lending
from ckpt.ops.memory_use import memory_use, why_not_apart
from ckpt.ops.other_host import OtherHost
from ckpt.ops.report import Report
from ckpt.ops.wishes import Wishes
from runtime.container.record import Container
from runtime.errors import Unsupported
from runtime.pagesource.send import PageSender
from transport.conversation import Facts
from transport.errors import LinkLost, TransportFault
from transport.lanes import LaneWriter
from transport.messages import Message, make
from transport.protocol import Lost


class OutgoingMemory:
    """REPORT: says the mode, and is told what was sent. STACK: closes what is opened here."""

    def __init__(
        self,
        host: Host,
        container: Container,
        there: OtherHost,
        report: Report,
        stack: contextlib.ExitStack,
        wishes: Wishes,
        *,
        show: Callable[[int, int], None],
    ) -> None:
        """SHOW: called with the bytes lent so far, and those that there are."""
        self._host = host
        self._container = container
        self._there = there
        self._report = report
        self._stack = stack
        self._wishes = wishes
        self._show = show
        self._lanes: list[LaneWriter] = []
        self._lending: Lending | None = None
        self.carrier: Carrier | None = None

    @property
    def written(self) -> int:
        """Bytes on the lane before the container ran elsewhere."""
        return self.carrier.written if self.carrier is not None else 0

    def _pids(self) -> list[int]:
        return self._host.cgroup(self._container).pids()

    def open_lanes(self, another: Callable[[], LaneWriter]) -> None:
        """As many from ANOTHER as the mode needs."""
        self._lanes = [another() for _ in range({"warm": 1, "lazy": 2}.get(self._report.mode, 0))]

    # ---- while it runs

    def copy(self, departure: Departure, check: Check, between: Callable[[], None]) -> None:
        """Rounds over it until the rest is small. CHECK may raise to end them; BETWEEN is called after each."""

        def ended(written: int) -> None:
            round_ended()
            between()

        sender = PageSender(self._lanes[0].fd, rate=self._wishes.bandwidth)
        self.carrier = self._stack.enter_context(
            Carrier(
                sender,
                self._pids,
                limits=self._wishes.limits,
                shared=SharedCarrier(sender, self._pids, self._host.paths.programs),
                copies=True,
                on_round=ended,
                on_new=self._look_at_forks,
            )
        )
        departure.leave_memory_to(self.carrier)
        self._report.tracker = self.carrier.tracker
        with telling.rounds(self._report, self.carrier) as round_ended:
            self.carrier.rounds(check)

    def _look_at_forks(self, pids: list[int]) -> None:
        """While it is copied processes have come: they may be copies of large ones."""
        if why := why_not_apart(self._container, memory_use(pids), self._wishes.mode):
            raise Unsupported(
                doing="copying", target="the memory while it runs", why=why,
                hint="try again when they have ended, or --mode cold", retry=True,
            )  # fmt: skip

    def leave(self, departure: Departure, check: Check) -> None:
        """It stays here until it is asked for; all of it, or what is written after a first round."""
        sender = PageSender(self._lanes[0].fd, rate=self._wishes.bandwidth)
        self.carrier = debt = Debt(sender, self._pids)
        self._stack.enter_context(debt)
        departure.leave_memory_to(debt)
        if self._wishes.pre_copy:
            self._report.tracker = debt.tracker
            with telling.rounds(self._report, debt):
                debt.copy_once(check)

    # ---- once it is dumped

    def dumped(self) -> dict[str, int]:
        """For the destination's count; what was left is lent from now on."""
        carrier, report = self.carrier, self._report
        if carrier is None:
            return {}
        report.bytes_memory = carrier.written
        report.bytes_last = carrier.last_bytes
        report.bytes_total += carrier.written
        if isinstance(carrier, Debt):
            report.bytes_owed = carrier.size
            self.lend().begin(carrier.sender, self._lanes[1])
        return {"marks": carrier.marks}

    def lend(self) -> Lending:
        """Be there for what the destination asks; over a new link again."""
        if self._lending is None:
            there = self._there
            self._lending = Lending(
                self._pids,
                say=lambda word: there.conversed.send(make("note", topic=TOPIC, body=dict(word))),
                lane=lambda mark: there.announced_lane({"for": mark}),
                lost=lambda fault: there.conversed.tell(Lost(_as_transport(fault))),
                rate=self._wishes.bandwidth,
                show=self._missing,
            )
            self._stack.callback(self._lending.close)
        return self._lending

    def hear(self, message: Message) -> None:
        """A message besides the transaction."""
        if self._lending is not None and message.get("topic") == TOPIC:
            self._lending.hear(message["body"])

    def _missing(self, count: int) -> None:
        owed = self._report.bytes_owed
        self._show(max(owed - count, 0), owed)

    def lent(self, word: Facts) -> None:
        """The other host has every page, or says in its WORD that it never will."""
        report = self._report
        if self._lending is not None:
            self._lending.close()
            report.bytes_total += self._lending.written - report.bytes_memory
            report.bytes_memory = self._lending.written
        report.faults = int(word.get("faults", 0))
        if whole := int(word.get("whole", 0)):
            # On a busy host the last page may be in place before it is noted that the tasks run.
            report.whole_ns = max(0, whole - int(word.get("ran", whole)))
        report.lost = str(word.get("lost", ""))

    def abort(self) -> None:
        """It isn't needed there."""
        if self._lending is not None:
            self._lending.close()
        if self.carrier is not None:
            self.carrier.abort()


def _as_transport(fault: Exception) -> TransportFault:
    if isinstance(fault, TransportFault):
        return fault
    return LinkLost(doing="lending", target="pages", why=str(fault), retry=True)
