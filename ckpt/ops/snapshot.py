"""A checkpoint of a container that runs on: how long it stands still for that.

    cold    frozen until all of it has been written: the pause grows with the memory
    warm    memory is copied while it runs (carry.py), as for a migration, into a nameless file beside the checkpoint.
            The freeze is for what was written last, for CRIU's metadata, and for what only CRIU can carry; all of that
            goes into memory. Then it runs again, and the checkpoint is put together from the parts (assemble.py)

Each page is that of the frozen moment: what was written after it had been copied is copied again, the last time in the
frozen window.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt.ops import stops
from ckpt.ops.aside import Aside
from ckpt.ops.assemble import complete
from ckpt.ops.carry import NOTEWORTHY, Carrier, NotConverging
from ckpt.ops.carry_shared import SharedCarrier
from ckpt.ops.convergence import Limits
from ckpt.ops.departure import Departure
from ckpt.ops.outgoing import Target
from ckpt.ops.preflight import why_not_warm_there
from runtime.errors import BadInput, Unsupported
from runtime.pagesource.keep import PageKeeper
from runtime.pagesource.wire import COPIES_FROM

LIMITS = Limits(max_downtime=0.01)
"""A round costs no lane here, and the last one goes on beside CRIU's own work, which takes several times as long."""
_SPARE = 16 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for. checkpoint: its name, "" for one that is made of the container's name and the time.
    mode: auto, warm or cold, for one that is left running; limits: of warm."""

    checkpoint: str = ""
    leave_running: bool = False
    mode: str = "auto"
    limits: Limits = LIMITS

    def check(self) -> None:
        """Raises BadInput for what can't go together."""
        if self.leave_running:
            return
        option = "--abort-if-not-converging" if self.limits.must_converge else "--mode warm"
        if self.mode == "warm" or self.limits.must_converge:
            raise BadInput(
                doing="dumping",
                target=f"with {option}",
                why="a container that ends with its checkpoint has no pause to shorten",
                hint="--leave-running",
            )


@dataclass(slots=True)
class Snapshot:
    """How it went. Sizes in bytes, of what was written to the checkpoint unless told."""

    mode: str = "cold"
    mode_why: str = ""
    """Why it is not warm."""
    tracker: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)
    rounds_why: str = ""
    notes: list[str] = field(default_factory=list)
    pause_ns: int = 0
    """From before the first task was stopped until after the last runs; 0 for a container that ended."""
    bytes_memory: int = 0
    """Of pages that were copied while it ran or were the last: what the checkpoint has of them."""
    bytes_copied: int = 0
    """Of pages read for that, in all rounds."""
    bytes_last: int = 0
    """Of them in the frozen window."""
    bytes_images: int = 0
    """What CRIU wrote."""
    bytes_files: int = 0
    bytes_total: int = 0
    """The checkpoint as it lies in the store or in its stream."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "mode_why": self.mode_why,
            "tracker": self.tracker,
            "rounds": self.rounds,
            "rounds_why": self.rounds_why,
            "notes": self.notes,
            "pause_ms": round(self.pause_ns / 1e6, 1) if self.pause_ns else None,
            "bytes": {
                "total": self.bytes_total,
                "images": self.bytes_images,
                "memory": self.bytes_memory,
                "memory_copied": self.bytes_copied,
                "memory_frozen": self.bytes_last,
                "files": self.bytes_files,
            },
        }


def take(
    departure: Departure, target: Target, wanted: Wanted, *, place: Path, memory: int
) -> Snapshot:
    """Everything into TARGET but what is there already; the container runs on when this returns or raises.

    DEPARTURE is prepared. PLACE: where a copy of the memory may lie until all is written, of about MEMORY bytes.
    Raises Unsupported if WANTED leaves no way.
    """
    found = Snapshot()
    if wanted.mode != "cold":
        found.mode_why = why_not_warm_there(departure.host) or _no_room(place, memory)
        if not found.mode_why:
            with contextlib.ExitStack() as stack:
                try:
                    keeper, carrier = _copy(departure, place, wanted.limits, stack)
                except NotConverging:
                    raise
                except Unsupported as fault:
                    found.mode_why = fault.why
                else:
                    found.mode = "warm"
                    _warm(departure, target, place, keeper, carrier, found)
    if found.mode_why and (wanted.mode == "warm" or wanted.limits.must_converge):
        option = "--mode warm" if wanted.mode == "warm" else "--abort-if-not-converging"
        raise Unsupported(
            doing="dumping", target=f"{departure.container.record.name} with {option}",
            why=found.mode_why, hint="--mode cold",
        )  # fmt: skip
    if found.mode == "cold":
        before = departure.bytes_images
        departure.freeze_and_dump(target, check=_frozen)
        found.bytes_images = departure.bytes_images - before
        departure.finish_running(unfinished=True)
    found.bytes_files = departure.bytes_files
    found.pause_ns = departure.times["resumed"] - departure.times["frozen"]
    return found


def _copy(
    departure: Departure, place: Path, limits: Limits, stack: contextlib.ExitStack
) -> tuple[PageKeeper, Carrier]:
    """All memory, while it runs. Raises Unsupported where nobody can tell what is written, NotConverging."""
    keeper = stack.enter_context(PageKeeper(place))
    cgroup = departure.host.cgroup(departure.container)

    def looked(_: int) -> None:
        stops.reached("round")
        untracked = carrier.untracked()
        if 2 * sum(size for size, _ in untracked.values()) > keeper.written:
            pid, (_, why) = max(untracked.items(), key=lambda one: one[1][0])
            raise Unsupported(
                doing="tracking",
                target=f"process {pid}",
                why=f"process {pid} can't be tracked: {why}",
            )

    carrier = stack.enter_context(
        Carrier(
            keeper,
            cgroup.pids,
            limits=limits,
            shared=SharedCarrier(keeper, cgroup.pids, departure.host.paths.programs),
            copies=True,
            on_round=looked,
        )
    )
    carrier.rounds(lambda: None)
    return keeper, carrier


def _warm(
    departure: Departure,
    target: Target,
    place: Path,
    keeper: PageKeeper,
    carrier: Carrier,
    found: Snapshot,
) -> None:
    found.tracker = carrier.tracker
    found.rounds = [{"bytes": one.size, "ms": round(one.seconds * 1e3, 1)} for one in carrier.done]
    found.rounds_why = carrier.why
    found.notes = [
        f"process {pid} was copied as a whole each time: {why}"
        for pid, (size, why) in sorted(carrier.untracked().items())
        if size > NOTEWORTHY
    ]
    departure.leave_memory_to(carrier, whole=True)
    departure.warm_up()
    # What the rounds took is time in which files were written as well.
    departure.sync_files(target)
    keeper.prepare(carrier.rest)
    carrier.once_more(lambda: None)
    keeper.hold()
    with Aside(place) as aside:
        departure.freeze_and_dump(aside, check=_frozen)
        departure.finish_running(unfinished=True)
        carrier.stop()
        stops.reached("complete")
        found.bytes_images = departure.bytes_images
        found.bytes_copied, found.bytes_last = keeper.written, carrier.last_bytes
        keeper.release()
        found.bytes_memory = complete(
            target,
            aside,
            departure.held,
            keeper,
            carrier.hidden,
            of_files=lambda task: carrier.kept(COPIES_FROM + task),
            shared=carrier.hidden_shared(),
        )


def _frozen() -> None:
    stops.reached("dump")


def _no_room(place: Path, memory: int) -> str:
    space = os.statvfs(place)
    free = space.f_bavail * space.f_frsize
    if free >= memory + _SPARE:
        return ""
    return f"its copy needs about {memory >> 20} MiB in {place}, where {free >> 20} MiB are free"


__all__ = ["LIMITS", "Snapshot", "Wanted", "take"]
