"""`ckpt migrate`: the source's column of the exchange in transport/protocol.py.

What holds the promise "exactly one copy runs" here, besides the order of the exchange:

- The container's lock is held from the first look to the last word: no stop, rm, dump or second migration meanwhile.
- Up to COMMIT the tasks stand still because CRIU waits in its hook for our word. If we die the hook fails, CRIU undoes
  what it did, and the tasks run on; what it couldn't undo the container's monitor has undone (ckpt/ops/heal.py).
- Just before the record `committed` goes to disk, the cgroup's freezer takes over, and the network is unplugged:
  whatever dies from then on, CRIU and we included, no task runs again, and the kernel answers nobody for them. They are
  killed before the freezer is let go.
- After COMMIT the journal alone refuses every command that could start the container here again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from ckpt.ops import bringup, dialect, heal, lifecycle, stops, telling, volumes
from ckpt.ops.departure import Departure
from ckpt.ops.environment import checked
from ckpt.ops.forecast import Way
from ckpt.ops.foresee import foresee
from ckpt.ops.host import Host, held_container
from ckpt.ops.hosts import Registry
from ckpt.ops.journal import Entry, Journal
from ckpt.ops.memory_use import MemoryUse, why_not_apart
from ckpt.ops.observe import Observed
from ckpt.ops.other_host import ASKING, OtherHost
from ckpt.ops.outgoing_memory import OutgoingMemory
from ckpt.ops.preflight import (
    checks,
    clashing_volumes,
    source_facts,
    source_findings,
    why_not_warm_there,
)
from ckpt.ops.probe import probe
from ckpt.ops.report import Report
from ckpt.ops.timeline import HERE, THERE, Sampler
from ckpt.ops.whole import wait_whole
from ckpt.ops.wishes import NONE, Wishes
from images.bundle_stream import StreamWriter
from runtime.container.record import Container
from runtime.criu.failures import CriuFault
from runtime.errors import NotFound, RuntimeFault, SystemFault, Unsupported
from transport.conversation import Conversation, Facts
from transport.errors import PeerFault
from transport.framing import FrameLink
from transport.lanes import LaneWriter
from transport.messages import greet
from transport.protocol import (
    AbortAsked,
    Action,
    Begin,
    Finish,
    Outcome,
    Restored,
    Source,
    State,
)

PRESYNC_ROUNDS = 4
FILES_EVERY = 2.0
"""Seconds between rounds over the files while memory is copied."""
SMALL_ROUND = 1 << 20
"""Bytes: a round over the files that sent less leaves little for the frozen window."""
REACHING = 60.0
"""Seconds of trying to reach the other host again, once it is to run the container."""
REACHING_LAZY = 600.0
"""The same, while the container runs there and waits for pages."""
TELLING = 10.0
"""The same, to tell it that it isn't: the container runs here already, and `ckpt recover` can tell it later."""
FOR_EVER = 30 * 24 * 3600.0
SLOW = 20e6
"""Bytes per second that a destination restores at least."""


class Refused(Unsupported):
    """Preflight found reasons; nothing was touched. `report.findings` has them."""

    report: Report


Progress = Callable[[str, int, int], None]
"""Called with the phase that is under way, the bytes handed to the lane so far, and those expected (0: unknown)."""

log = logging.getLogger(__name__)


class Migration:
    """The source's end of one migration."""

    def __init__(
        self,
        host: Host,
        container: Container,
        target: str,
        *,
        wishes: Wishes = NONE,
        progress: Progress = lambda phase, count, expected: None,
    ) -> None:
        self.host = host
        self.container = container
        self._wishes = wishes
        self._not_warm = ""
        self._progress = progress
        identity = f"{container.record.id}-{secrets.token_hex(4)}"
        mode = "warm" if wishes.mode == "auto" else wishes.mode
        self.report = Report(identity, container.record.name, target, mode)
        self._there = OtherHost(Registry(host), target, wishes.lanes)
        self._stack = contextlib.ExitStack()
        self._memory = OutgoingMemory(
            host,
            container,
            self._there,
            self.report,
            self._stack,
            wishes,
            show=lambda lent, owed: progress("pages", lent, owed),
        )
        self._lane: LaneWriter | None = None
        self._writer: StreamWriter | None = None
        self._departure: Departure | None = None
        self._journal: Journal | None = None
        self._stopped: BaseException | None = None
        self._took_over = False
        self._facts: dict[str, Any] = {}
        self._hurry = threading.Event()
        self._cancel = -1
        self._expected = 0
        self._files_at = 0.0
        self._reconnects = 0
        self._phase_ns = self.report.timeline.began_ns
        self._current = "connect"
        self._machine = Source(identity, greet(dialect.software(), dialect.FEATURES))

    def _converse(self, link: FrameLink | None) -> Conversation:
        actions: dict[Action, stops.Perform] = {
            Action.CHECK: self.check,
            Action.SYNC: self.sync,
            Action.FREEZE: self.freeze,
            Action.BURY: self.bury,
            Action.CLEAN: self.clean,
            Action.RESUME: self.resume,
            Action.RECONNECT: self.reconnect,
        }
        self._there.conversation = Conversation(
            self._machine,
            link,
            journal=self.write_journal,
            actions={action: stops.around(action, perform) for action, perform in actions.items()},
            besides=self._memory.hear,
            interrupt=self._interrupt,
        )
        return self._there.conversation

    @property
    def _lazy(self) -> bool:
        return self.report.mode == "lazy"

    # ---- the whole

    def run(self) -> Report:
        """Migrate. Raises why it did not come to it; then the container runs here, and nothing is there."""
        report = self.report
        try:
            with self._stack, Sampler(report.timeline, self._sent):
                # Ends whatever waits in the middle of a transfer, from any thread.
                self._cancel = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._stack.callback(os.close, self._cancel)
                self._progress("connect", 0, 0)
                link = self._stack.enter_context(self._there).dial()
                self._phase("connect", "preflight")
                finish = self._carry_out(link)
                report.state = str(self._there.conversed.machine.state)
                return self._conclude(finish)
        except BaseException as fault:
            report.failed(fault)
            raise
        finally:
            self._phase(self._current)
            report.total_ns = time.time_ns() - report.timeline.began_ns

    def _carry_out(self, link: FrameLink) -> Finish:
        try:
            return self._converse(link).run(Begin())
        except (RuntimeFault, OSError) as fault:
            # The journal could not be written. What is on disk counts, as after a crash.
            if self._journal is None:
                raise
            log.debug("going on from the journal", exc_info=True)
            self._machine = Source(self.report.id, greet(dialect.software(), dialect.FEATURES))
            self._stopped = self._stopped or fault
            finish = self._converse(None).run(Restored(self._journal.reread()))
            return finish if finish.cause else Finish(finish.outcome, fault)

    def _conclude(self, finish: Finish) -> Report:
        cause = finish.cause
        if isinstance(cause, PeerFault):
            cause.host = self.report.target
        if self.report.lost:
            self.report.outcome = "lost"
            raise _lost(self.report)
        if finish.outcome is Outcome.MOVED or isinstance(cause, DryRun):
            self.report.outcome = "planned" if isinstance(cause, DryRun) else "moved"
            return self.report
        if finish.outcome is Outcome.UNFINISHED:
            self.report.outcome = "unfinished"
            first = self._there.conversed.machine.cause
            began = f"; it began with: {first}" if first not in (None, cause) else ""
            raise SystemFault(
                doing="finishing the migration of",
                target=f"container {self.container.record.name}",
                why=f"it is {self.report.state}, but: {cause}{began}",
                hint="ckpt recover goes on with it",
                retry=True,
            )
        self._forget_aborted()
        if self.report.findings:
            raise self._refusal()
        raise cause or _given_up(self.container)

    def _forget_aborted(self) -> None:
        """An abort that the other host has heard of is over; another stays on record for `ckpt recover`."""
        if self._journal is None:
            return
        if self.untold:
            log.warning(
                "%s could not be told; ckpt recover does it later (migration %s)",
                self.report.target,
                self.report.id,
            )
        else:
            self._journal.forget()

    @property
    def untold(self) -> bool:
        """Given up, and the destination doesn't know."""
        return self._there.conversed.machine.position == "untold"

    def take_over(self, journal: Journal) -> None:
        """Recovery: go on with what another process began; its journal is ours now."""
        self._took_over = True
        self._journal = journal
        self.report.id = journal.entry.id
        self.report.mode = str(journal.entry.facts.get("mode", self.report.mode))
        self._machine = Source(journal.entry.id, greet(dialect.software(), dialect.FEATURES))

    def conclude(self, state: State) -> tuple[Outcome, Exception | None]:
        """Recovery: from the journal's STATE to the end."""
        with self._stack, self._there:
            finish = self._converse(None).run(Restored(state))
            if finish.outcome is Outcome.ABORTED:
                self._forget_aborted()
            return finish.outcome, finish.cause

    def stop(self, why: Exception) -> None:
        """Give it up if that is still possible. From a signal handler: it may raise WHY where nothing has begun."""
        if self._stopped is not None:
            self._hurry.set()  # asked again: don't try for long to tell the other host
        self._stopped = self._stopped or why
        if self._there.conversation is None:
            raise why
        self._there.conversation.tell(AbortAsked(why))

    def _interrupt(self) -> None:
        if self._cancel >= 0:
            os.eventfd_write(self._cancel, 1)

    def _refusal(self) -> Refused:
        reasons = "; ".join(f"{f['what']}: {f['why']}" for f in self.report.findings)
        refused = Refused(
            doing="migrating",
            target=f"{self.container.record.name} to {self.report.target}",
            why=reasons,
            hint="; ".join(f["hint"] for f in self.report.findings if f["hint"]),
        )
        refused.report = self.report
        return refused

    def _phase(self, ended: str, begun: str = "") -> None:
        now = time.time_ns()
        if ended:
            self.report.phases[ended] = now - self._phase_ns
            self.report.timeline.phase(ended, self._phase_ns, now)
        self._phase_ns = now
        self._current = begun
        self._show()

    def _show(self) -> None:
        if self._current:
            sent = self._sent()
            self._progress(self._current, sent, max(sent, self._expected))

    def _sent(self) -> int:
        written = self._writer.size if self._writer else 0
        return written + self._memory.written

    def _going(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        self._show()

    # ---- what the machine asks for

    def write_journal(self, state: State, durable: bool) -> None:
        if self._journal is None:
            if self._wishes.dry_run:
                return
            entry = Entry(
                id=self.report.id,
                role="source",
                container=self.container.record.id,
                name=self.container.record.name,
                # Not its name here: that may be taken away before `ckpt recover` needs it.
                peer=self._there.address,
                state=str(state),
            )
            self._journal = Journal(self.host.paths.journals, entry)
            self._stack.callback(self._journal.close)
        if state is State.COMMITTED:
            self._hold()
        self._journal.entry.facts["mode"] = self.report.mode
        self._journal.write(state, durable)
        stops.reached(f"journal-{state}")
        if state == State.CLEANED:
            self._journal.forget()

    def check(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        dialect.check_destination(facts)
        self._choose(dialect.why_no_mode(facts, self.report.mode))
        self.container.require("running", doing="migrating")
        wait_whole(self.container, self._going)
        pids = self.host.cgroup(self.container).pids()
        self._facts = source_facts(self.host, self.container, pids)
        self.report.environment[HERE] = self._facts["environment"]
        self.report.findings += source_findings(self.host, self.container, pids)
        use = MemoryUse(self._facts["memory"], self._facts["forked"])
        if self.report.mode != "cold" or self._wishes.dry_run:
            # Only then: looking compiles something, the first time.
            self._not_warm = why_not_warm_there(self.host) or why_not_apart(
                self.container, use, self._wishes.mode
            )
            self._choose(self._not_warm)
        if self.report.findings:
            raise self._refusal()
        if self.report.mode != "cold":
            self._facts["memory"] += use.forked
        self._facts["needs"] = dialect.needs(self.report.mode)
        self._there.compare_clocks()
        self.report.clock_error_ns = self._there.clock_error_ns
        return {"mode": self.report.mode, "facts": self._facts}

    def _choose(self, why_not_warm: str) -> None:
        """Warm unless somebody has a reason against it: then cold, or a refusal if that isn't what was asked for.

        Lazy is made of the same parts.
        """
        if self.report.mode == "cold" or not why_not_warm:
            return
        wish = self._wishes.mode
        if wish != "auto" or self._wishes.limits.must_converge:
            what = f"mode {wish}" if wish != "auto" else "--abort-if-not-converging"
            self.report.findings = [
                *self.report.findings,
                {"what": what, "why": why_not_warm, "hint": "--mode cold"},
            ]
        self.report.mode = "cold"
        self.report.mode_why = why_not_warm

    def sync(self, facts: Facts, stop: threading.Event) -> None:
        theirs = dialect.check_answer(facts["facts"])
        self.report.environment[THERE] = checked(theirs.get("environment"))
        self._choose(str(theirs.get("not_warm", "")))
        self.report.findings += clashing_volumes(
            self.host, self.container, theirs.get("volumes", {})
        )
        if self.report.findings:
            raise self._refusal()
        missing = list(theirs.get("missing_layers", []))
        layers = sum(size for digest, size in self._facts["layers"].items() if digest in missing)
        self._expected = self._facts["memory"] + self._facts["files"] + layers
        self.report.checks = checks(self._facts, theirs)
        if self._wishes.dry_run:
            self._phase("preflight", "observe")
            self._foresee(layers, self._not_warm or str(theirs.get("not_warm", "")))
            raise DryRun(doing="trying", target=self.report.name, why="a dry run ends here")
        self._phase("preflight", "open")
        self._there.conversed.peer_timeout += self._expected / SLOW
        self._departure = self._stack.enter_context(
            Departure(
                self.host,
                self.container,
                reason=f"migrated to {self.report.target}",
                leave_running=False,
            )
        )
        self._departure.prepare()
        self._open_lane()
        assert self._lane is not None
        self.report.lane = self._lane.kind
        # The tasks stay frozen until everything was taken: their pages may be sent in place.
        self._writer = self._stack.enter_context(
            StreamWriter(self._lane.fd, cancel_fd=self._cancel)
        )
        self._writer.manifest(self._departure.manifest(self.report.id).to_bytes())
        self._phase("open", "layers")
        self.report.bytes_layers = self._departure.send_layers(self._writer, only=missing)
        self._phase("layers", "files")
        for _ in range(PRESYNC_ROUNDS):
            sent = self._sync_files()
            self._going()
            if sent < SMALL_ROUND:
                break
        if self.report.mode == "warm":
            self._phase("files", "memory")
            self._memory.copy(self._departure, self._going, self._between_rounds)
        elif self._lazy:
            self._phase("files", "memory")
            self._memory.leave(self._departure, self._going)
        self._departure.warm_up()
        self._there.await_readiness(stop)
        # It may be gone by the time that this failed, if it does.
        self._there.hear_arrivals(self.report.timeline)
        self._phase("files" if self.report.mode == "cold" else "memory", "dump")

    def _foresee(self, layers: int, not_warm: str) -> None:
        """What it will cost: the container is watched, and a lane tried."""

        def way(seen: Observed) -> Way:
            self._phase("observe", "probe")
            lane = self._there.offered_lane()
            try:
                found = probe(self._there.conversed, lane, seen.sample, ASKING)
            finally:
                lane.abort()
            return found.limited(rate) if (rate := self._wishes.bandwidth) else found

        self.report.forecast = foresee(
            self.host,
            self.container,
            way,
            self._wishes,
            layers=layers,
            not_warm=not_warm,
            check=lambda share: self._going(),
        )
        self._phase("probe")

    def _sync_files(self) -> int:
        assert self._departure is not None and self._writer is not None
        sent = self._departure.sync_files(self._writer)
        self.report.bytes_files += sent
        self._files_at = time.monotonic()
        return sent

    def _between_rounds(self) -> None:
        self._show()
        if time.monotonic() > self._files_at + FILES_EVERY:
            self._sync_files()  # memory took long: files that changed meanwhile needn't wait for the freeze

    def _open_lane(self) -> None:
        self._lane = self._another_lane({"mode": self.report.mode})
        self._memory.open_lanes(lambda: self._another_lane({}))

    def _another_lane(self, facts: dict[str, Any]) -> LaneWriter:
        lane = self._there.announced_lane(facts)
        self._stack.callback(lane.abort)
        return lane

    def freeze(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        assert self._departure is not None and self._writer is not None
        before = self._writer.size
        with telling.window(self.report, self._departure, self._memory.carrier):
            self._departure.freeze_and_dump(self._writer, check=lambda: self._dumping(stop))
            self.report.bytes_images = self._writer.size - before
            self._writer.end()
            # The restore begins with the end of the images, and comes to the pages much later.
            if self._memory.carrier is not None:
                self._memory.carrier.settle(lambda: self._dumping(stop))
        self._phase("dump", "restore")
        self.report.bytes_total = self._writer.size
        return {"summary": {"bytes": self._writer.size, **self._memory.dumped()}}

    def _dumping(self, stop: threading.Event) -> None:
        stops.reached("dump", stop)
        self._going()

    def _hold(self) -> None:
        """From here to their end the tasks stay still and silent, even if we and CRIU die."""
        self._stack.callback(self._let_go_unless_decided)
        heal.hold(self.host, self.container)

    def _let_go_unless_decided(self) -> None:
        if not heal.is_decided(self.host, self.container):
            heal.release(self.host, self.container)

    def bury(self, facts: Facts, stop: threading.Event) -> None:
        """Frozen and unplugged they stay. They die in clean(): that takes time, and then nobody waits for it."""
        self._phase("restore", "go")
        self.report.timeline.moment("it is decided: it runs there")
        if self._departure is not None:
            self._departure.keep_held()
        if self._lazy:
            # Our tasks are the other host's store of pages, for as long as it takes.
            # The link's own heartbeat tells when nobody is there.
            self._there.conversed.peer_timeout = FOR_EVER
            self._memory.lend()

    def _end_tasks(self) -> None:
        if self._departure is None:
            # Another process began this; its CRIU is gone, the freezer holds the tasks.
            bury_held(self.host, self.container)
            return
        self._departure.verdict_kill()
        # CRIU kills them, too; but should it die before, they must not outlive the freezer.
        self._departure.kill_tasks()
        heal.thaw(self.host, self.container)  # a frozen task of v1 dies only when it thaws
        # They are dying: none will run another instruction. That their memory is freed is not waited for here.
        self._departure.wait_dying()

    def clean(self, facts: Facts, stop: threading.Event) -> None:
        at = int(facts.get("at", 0))
        if self._lazy:  # what is frozen here is of no use any more
            self._memory.lent(facts.get("facts", {}))
        self._end_tasks()
        if self._departure is not None and at:
            frozen = self._departure.times["frozen"]
            self.report.downtime_ns = at - self._there.clock_offset_ns - frozen
        self._phase("go", "clean")
        self._there.hear_arrivals(self.report.timeline)
        if self._departure is not None:
            self.report.images_by_kind = self._departure.images_by_kind()
        if self._lane is not None:
            self._lane.abort()  # everything arrived, as the destination's count says
        if self._departure is not None:
            with contextlib.suppress(CriuFault):  # its tasks died under its hands
                self._departure.wait_killed()
        if self.container.paths.record.exists():
            volumes.moved_away(self.host.paths, self.container.record, self.host.containers())
            lifecycle.remove(self.host, self.container, force=True)
        self._phase("clean")

    def resume(self, facts: Facts, stop: threading.Event) -> None:
        if facts.get("findings"):
            self.report.findings = list(facts["findings"])
            self.report.checks = checks(self._facts, facts["facts"])
            self.report.environment[THERE] = checked(facts["facts"].get("environment"))
        self._stopped = self._stopped or _given_up(self.container)
        self._interrupt()
        self._phase(self._current, "resume")
        self._memory.abort()
        if self._departure is not None:
            self._departure.resume()
        if self._departure is not None or self._took_over:
            heal.release(self.host, self.container)
        if self._lane is not None:
            self._lane.abort()
            self._there.hear_arrivals(self.report.timeline)

    def reconnect(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        """A new session with a new agent, with patience. Raises the last attempt's fault."""
        aborted = self._there.conversed.machine.state is State.ABORTED
        if self._lazy and not aborted:
            self._phase(self._current, "reconnect")
            # What went wrong at the other host may well go wrong again.
            self._reconnects += 1
            if self._hurry.wait(min(5.0, 0.05 * 2**self._reconnects)):
                raise self._stopped or _given_up(self.container)
        patience = TELLING if aborted else REACHING_LAZY if self._lazy else REACHING
        return {"link": self._there.reach(patience, self._hurry)}


class DryRun(RuntimeFault):
    """Not a fault: how a dry run leaves the exchange."""


def _lost(report: Report) -> SystemFault:
    return SystemFault(
        doing="migrating",
        target=f"container {report.name}",
        why=f"it is lost, killed at {report.target}: {report.lost}",
        hint=f"its files are at {report.target}: ckpt start",
    )


def _given_up(container: Container) -> SystemFault:
    return SystemFault(
        doing="migrating", target=f"container {container.record.name}", why="it was given up"
    )


def bury_held(host: Host, container: Container) -> None:
    """End tasks that were held for a COMMIT whose process died: unheard, as another copy has their connections."""
    with contextlib.suppress(NotFound):
        host.cgroup(container).kill()
    bringup.tear_down(host, container)


def migrate(
    host: Host,
    name: str,
    target: str,
    *,
    wishes: Wishes = NONE,
    progress: Progress = lambda phase, count, expected: None,
    on_begin: Callable[[Migration], None] = lambda migration: None,
) -> Report:
    """Move container NAME to TARGET ([USER@]HOST[:PORT]). Raises why it stayed."""
    host.ready()
    with held_container(host, name, wait=3.0) as container:
        container.require("running", doing="migrating")
        migration = Migration(host, container, target, wishes=wishes, progress=progress)
        on_begin(migration)
        return migration.run()
