"""`ckpt migrate`: the source's column of the exchange in transport/protocol.py."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ckpt import FEATURES, SOFTWARE
from ckpt.ops import bringup, lifecycle
from ckpt.ops.departure import Departure
from ckpt.ops.host import Host, lock_container
from ckpt.ops.journal import Entry, Journal
from ckpt.ops.preflight import Finding, source_facts, source_findings
from images.bundle_stream import StreamWriter
from runtime import cgroups
from runtime.container.record import Container
from runtime.errors import RuntimeFault, SystemFault, Unsupported
from transport import ssh
from transport.conversation import Conversation, Facts
from transport.errors import TransportFault
from transport.framing import FrameLink
from transport.lane_opening import open_lane
from transport.lanes import PREFERENCE, LaneWriter
from transport.messages import greet, make
from transport.protocol import AbortAsked, Action, Begin, Outcome, Restored, Source, State

PRESYNC_ROUNDS = 4
SMALL_ROUND = 1 << 20
"""Bytes: a round over the files that sent less leaves little for the frozen window."""
RECONNECTS = 10
CLOCK_ASKS = 5
ASKING = 30.0
"""Seconds that the peer may take to answer a question besides the transaction."""


@dataclass(slots=True)
class Report:
    """What a migration did. Times in nanoseconds, of the source's clock."""

    id: str
    name: str
    target: str
    mode: str
    state: str = ""
    lane: str = ""
    findings: list[Finding] = field(default_factory=list)
    downtime_ns: int = 0
    clock_error_ns: int = 0
    """Half the round trip in which the clocks were compared: how far the downtime may be off."""
    total_ns: int = 0
    bytes_total: int = 0
    bytes_files: int = 0
    bytes_layers: int = 0
    bytes_images: int = 0
    phases: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "target": self.target,
            "mode": self.mode,
            "state": self.state,
            "lane": self.lane,
            "findings": self.findings,
            "downtime_ms": round(self.downtime_ns / 1e6, 1),
            "clock_error_ms": round(self.clock_error_ns / 1e6, 3),
            "total_ms": round(self.total_ns / 1e6, 1),
            "bytes": {
                "total": self.bytes_total,
                "images": self.bytes_images,
                "files": self.bytes_files,
                "layers": self.bytes_layers,
            },
            "phases_ms": {name: round(ns / 1e6, 1) for name, ns in self.phases.items()},
        }


class Refused(Unsupported):
    """Preflight found reasons; nothing was touched. `findings` has them."""

    findings: list[Finding]


Progress = Callable[[str, int], None]
"""Called with a phase and the bytes handed to the lane so far."""


class Migration:
    """The source's end of one migration."""

    def __init__(
        self,
        host: Host,
        container: Container,
        target: str,
        *,
        mode: str = "cold",
        dry_run: bool = False,
        lanes: tuple[str, ...] = (),
        progress: Progress = lambda phase, count: None,
    ) -> None:
        self.host = host
        self.container = container
        self._dry_run = dry_run
        self._lanes = lanes
        self._progress = progress
        identity = f"{container.record.id}-{secrets.token_hex(4)}"
        self.report = Report(identity, container.record.name, target, mode)
        self._remote = remote_command()
        self._stack = contextlib.ExitStack()
        self._session: ssh.Session | None = None
        self._lane: LaneWriter | None = None
        self._writer: StreamWriter | None = None
        self._departure: Departure | None = None
        self._journal: Journal | None = None
        self._stopped: BaseException | None = None
        self._offset_ns = 0
        self._began_ns = time.time_ns()
        self._phase_ns = self._began_ns
        self._machine = Source(identity, greet(SOFTWARE, FEATURES))
        self.conversation: Conversation | None = None

    def _converse(self, link: FrameLink | None) -> Conversation:
        self.conversation = Conversation(
            self._machine,
            link,
            journal=self.write_journal,
            actions={
                Action.CHECK: self.check,
                Action.SYNC: self.sync,
                Action.FREEZE: self.freeze,
                Action.BURY: self.bury,
                Action.CLEAN: self.clean,
                Action.RESUME: self.resume,
                Action.RECONNECT: self.reconnect,
            },
        )
        return self.conversation

    # ---- the whole

    def run(self) -> Report:
        """Migrate. Raises why it did not come to it; then the container runs here, and nothing is there."""
        with self._stack:
            conversation = self._converse(self._dial())
            self._phase("connect")
            finish = conversation.run(Begin())
            outcome, cause = finish.outcome, finish.cause
            self.report.total_ns = time.time_ns() - self._began_ns
            self.report.state = str(conversation.machine.state)
            if outcome is Outcome.MOVED:
                return self.report
            if self.report.findings or (cause is None and self._dry_run):
                if self._dry_run and not self.report.findings:
                    return self.report
                raise self._refusal()
            if outcome is Outcome.UNFINISHED:
                raise SystemFault(
                    doing="finishing the migration of",
                    target=f"container {self.container.record.name}",
                    why=f"it is committed, but: {cause}",
                    hint="ckpt recover goes on with it",
                    retry=True,
                )
            if isinstance(cause, _DryRun):
                return self.report
            if cause is None:
                cause = SystemFault(
                    doing="migrating", target=self.container.record.name, why="it was given up"
                )
            raise cause

    def take_over(self, journal: Journal) -> None:
        """Recovery: go on with what another process began; its journal is ours now."""
        self._journal = journal
        self.report.id = journal.entry.id
        self._machine = Source(journal.entry.id, greet(SOFTWARE, FEATURES))

    def conclude(self, state: State) -> tuple[Outcome, Exception | None]:
        """Recovery: from the journal's STATE to the end."""
        with self._stack:
            finish = self._converse(None).run(Restored(state))
            return finish.outcome, finish.cause

    def stop(self, why: Exception) -> None:
        """Give it up if that is still possible. From a signal handler or another thread."""
        self._stopped = why
        if self.conversation is not None:
            self.conversation.tell(AbortAsked(why))

    def _refusal(self) -> Refused:
        reasons = "; ".join(f"{f['what']}: {f['why']}" for f in self.report.findings)
        refused = Refused(
            doing="migrating",
            target=f"{self.container.record.name} to {self.report.target}",
            why=reasons,
            hint="; ".join(f["hint"] for f in self.report.findings if f["hint"]),
        )
        refused.findings = self.report.findings
        return refused

    def _dial(self) -> FrameLink:
        session = ssh.connect(self.report.target)
        self._stack.callback(session.close)
        self._session = session
        agent = session.open_command([*self._remote, "agent"])
        return FrameLink(agent)

    def _phase(self, name: str) -> None:
        now = time.time_ns()
        self.report.phases[name] = now - self._phase_ns
        self._phase_ns = now
        self._progress(name, self._writer.size if self._writer else 0)

    def _going(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._writer is not None:
            self._progress("freeze", self._writer.size)

    # ---- what the machine asks for

    def write_journal(self, state: State, durable: bool) -> None:
        if self._journal is None:
            if state in (State.ABORTED, State.PLANNED) and self._dry_run:
                return
            entry = Entry(
                id=self.report.id,
                role="source",
                container=self.container.record.id,
                name=self.container.record.name,
                peer=self.report.target,
                state=str(state),
            )
            self._journal = Journal(self.host.paths.journals, entry)
            self._stack.callback(self._journal.close)
        self._journal.write(state, durable)
        if state == State.CLEANED:
            self._journal.forget()

    def check(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        self.container.require("running", doing="migrating")
        pids = self.host.cgroup(self.container).pids()
        self.report.findings = source_findings(self.container, pids)
        if self.report.findings:
            raise self._refusal()
        self._compare_clocks()
        return {
            "mode": self.report.mode,
            "facts": source_facts(self.host, self.container, pids),
        }

    def _compare_clocks(self) -> None:
        """The other host's clock against ours, from the quickest of a few round trips (as NTP does)."""
        assert self.conversation is not None
        best = None
        for _ in range(CLOCK_ASKS):
            before = time.time_ns()
            answer = self.conversation.ask(make("note", topic="clock", body={}), ASKING)
            theirs = int(answer["body"]["ns"])
            after = time.time_ns()
            if best is None or after - before < best[0]:
                best = (after - before, theirs - (before + after) // 2)
        assert best is not None
        self.report.clock_error_ns, self._offset_ns = best[0] // 2, best[1]

    def sync(self, facts: Facts, stop: threading.Event) -> None:
        if not facts.get("ok", True):
            self.report.findings = list(facts.get("findings", []))
            raise self._refusal()
        self._phase("preflight")
        if self._dry_run:
            raise _DryRun(doing="trying", target=self.report.name, why="a dry run ends here")
        assert self._session is not None
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
        self._writer = self._stack.enter_context(StreamWriter(self._lane.fd))
        self._writer.manifest(self._departure.manifest(self.report.id).to_bytes())
        self._phase("open")
        self.report.bytes_layers = self._departure.send_layers(
            self._writer, only=list(facts["facts"].get("missing_layers", []))
        )
        self._phase("layers")
        for _ in range(PRESYNC_ROUNDS):
            sent = self._departure.sync_upper(self._writer)
            self.report.bytes_files += sent
            self._going()
            if sent < SMALL_ROUND:
                break
        self._departure.warm_up()
        self._phase("files")

    def _open_lane(self) -> None:
        conversation, session = self.conversation, self._session
        assert conversation is not None and session is not None
        self._lane = open_lane(
            session,
            lambda message: conversation.ask(message, ASKING),
            lambda token, path: [*self._remote, "agent", "--lane", token, "--socket", path],
            kinds=self._lanes or PREFERENCE,
        )
        self._stack.callback(self._lane.abort)
        conversation.send(make("note", topic="lane", body={"token": self._lane.token}))

    def freeze(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        assert self._departure is not None and self._writer is not None
        before = self._writer.size
        self._departure.freeze_and_dump(self._writer, check=self._going)
        self.report.bytes_images = self._writer.size - before
        self._writer.end()
        self._hold()
        self._phase("dump")
        self.report.bytes_total = self._writer.size
        return {"summary": {"bytes": self._writer.size}}

    def _hold(self) -> None:
        """From here to their end the tasks must stay still, even if we and CRIU die: COMMIT lies ahead."""
        with contextlib.suppress(RuntimeFault):
            self.host.cgroup(self.container).begin_freeze()

    def _release_hold(self) -> None:
        with contextlib.suppress(RuntimeFault):
            self.host.cgroup(self.container).thaw()

    def bury(self, facts: Facts, stop: threading.Event) -> None:
        self._phase("restore")
        if (
            self._departure is None
        ):  # another process began this; its CRIU is gone, the tasks are held
            bury_held(self.host, self.container)
            return
        self._departure.verdict_kill()
        # CRIU's SIGKILL reaches tasks in a frozen v1 cgroup only when they thaw.
        self._release_hold()
        # They are dying: none will run another instruction. That their memory is freed is not waited for here.
        self._departure.wait_dying()

    def clean(self, facts: Facts, stop: threading.Event) -> None:
        at = int(facts.get("at", 0))
        if self._departure is not None and at:
            frozen = self._departure.times["frozen"]
            self.report.downtime_ns = at - self._offset_ns - frozen
        self._phase("go")
        if self._lane is not None:
            self._lane.abort()  # everything arrived, as the destination's count says
        if self._departure is not None:
            self._departure.wait_killed()
        with lock_container(self.container):
            lifecycle.remove(self.host, self.container, force=True)
        self._phase("clean")

    def resume(self, facts: Facts, stop: threading.Event) -> None:
        self._stopped = self._stopped or SystemFault(
            doing="migrating", target=self.report.name, why="it was given up"
        )
        if self._lane is not None:
            self._lane.abort()
        if self._departure is not None:
            self._departure.resume()
        self._release_hold()

    def reconnect(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        delay = 0.2
        for attempt in range(RECONNECTS):
            try:
                return {"link": self._dial()}
            except TransportFault:
                if attempt == RECONNECTS - 1:
                    raise
                stop.wait(delay)
                delay = min(5.0, delay * 2)
        raise AssertionError("the last attempt raises")


class _DryRun(RuntimeFault):
    """Not a fault: how a dry run leaves the exchange."""


def remote_command() -> list[str]:
    """How ckpt is started at the other host."""
    return os.environ.get("CKPT_REMOTE", "ckpt").split()


def bury_held(host: Host, container: Container) -> None:
    """End tasks that were held frozen for a COMMIT whose process died."""
    cgroup: cgroups.Cgroup = host.cgroup(container)
    if cgroup.exists():
        cgroup.kill()
    bringup.tear_down(host, container)


def migrate(
    host: Host,
    name: str,
    target: str,
    *,
    mode: str = "cold",
    dry_run: bool = False,
    lanes: tuple[str, ...] = (),
    progress: Progress = lambda phase, count: None,
    on_begin: Callable[[Migration], None] = lambda migration: None,
) -> Report:
    """Move container NAME to TARGET ([USER@]HOST[:PORT]). Raises why it stayed."""
    host.ready()
    container = host.find(name)
    container.require("running", doing="migrating")
    migration = Migration(
        host, container, target, mode=mode, dry_run=dry_run, lanes=lanes, progress=progress
    )
    on_begin(migration)
    return migration.run()
