"""A migration's journal: one small record a migration and host, on disk before the step that it announces.

Who holds the lock beside it acts for that migration on that host; the lock ends with its holder. What a journal says
binds every other command, too: see require_settled.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime import slots
from runtime.errors import BadInput, Conflict, NotFound, from_os_error
from runtime.files import locked, sweep_unpublished
from transport.protocol import State

_GONE = frozenset((State.COMMITTED, State.RUNNING, State.CLEANED))
_ID = re.compile(r"[a-z0-9][a-z0-9-]{7,63}")


@dataclass(slots=True)
class Entry:
    """What is on disk. peer: how the other host is reached; facts: what recovery needs besides."""

    id: str
    role: str
    container: str
    name: str
    peer: str
    state: str
    changed_ns: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_lazy(self) -> bool:
        """Memory follows after COMMIT: until then both hosts are needed."""
        return self.facts.get("mode") == "lazy"


class Journal:
    """Holds the lock of one migration at this host: who has it may act for it."""

    def __init__(self, directory: Path, entry: Entry, *, wait: float = 0) -> None:
        if not _ID.fullmatch(entry.id):
            raise BadInput(doing="reading", target=f"migration {entry.id!r}", why="that is no id")
        self._path = directory / f"{entry.id}.{entry.role}.journal"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(
                self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise from_os_error(error, doing="opening", target=str(self._path)) from error
        try:
            self._acquire(wait)
        except BlockingIOError:
            os.close(self._lock)
            raise Conflict(
                doing="taking over",
                target=f"migration {entry.id}",
                why="another process is at it",
                retry=True,
            ) from None
        self.entry = entry

    def _acquire(self, wait: float) -> None:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)

    @classmethod
    def load(cls, directory: Path, identity: str, role: str, *, wait: float = 0) -> Journal:
        """Take over what another process began, if it ends within WAIT seconds. Raises NotFound, Conflict."""
        path = directory / f"{identity}.{role}.journal"
        try:
            journal = cls(directory, _read(path), wait=wait)
        except FileNotFoundError:
            raise _unknown(identity) from None
        try:
            # Again, under the lock: its last holder may have written, or forgotten it, meanwhile.
            journal.reread()
        except FileNotFoundError:
            journal.forget()
            raise _unknown(identity) from None
        return journal

    def reread(self) -> State:
        """What is on disk, after a write that failed somewhere."""
        self.entry = _read(self._path)
        return State(self.entry.state)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write(self, state: State, durable: bool = True) -> None:
        """On disk when it returns, if DURABLE; whole in any case. The first is always durable."""
        self.entry.state = str(state)
        self.entry.changed_ns = time.time_ns()
        data = json.dumps(asdict(self.entry)).encode()
        if self._path.exists():
            slots.write(self._path, data, durable=durable)
        else:
            slots.create(self._path, data)

    def forget(self) -> None:
        """The migration is over at both ends."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)
        self.close()


def _read(path: Path) -> Entry:
    return Entry(**json.loads(slots.read(path)))


def _unknown(identity: str) -> NotFound:
    return NotFound(
        doing="looking for", target=f"migration {identity}", why="this host has no journal of it"
    )


def entries(directory: Path) -> list[Entry]:
    """Every migration that this host knows of, oldest first."""
    if not directory.is_dir():
        return []
    found = []
    for path in directory.glob("*.journal"):
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue
    return sorted(found, key=lambda entry: entry.changed_ns)


def sweep(directory: Path) -> list[str]:
    """Remove locks of migrations that were killed before their first word was on disk; returns what was removed."""
    done = sweep_unpublished(directory)
    for lock in sorted(directory.glob("*.lock")):
        if lock.with_suffix(".journal").exists():
            continue
        with (
            contextlib.suppress(Conflict, FileNotFoundError),
            locked(lock, what=lock.name, wait=0, make=False),
        ):
            if not lock.with_suffix(".journal").exists():
                lock.unlink()
                done.append(lock.name)
    return done


def of_container(directory: Path, container: str) -> list[Entry]:
    """The migrations of one container, by its id."""
    return [entry for entry in entries(directory) if entry.container == container]


def decided(entry: Entry) -> bool:
    """Whether the container runs, or is to run, at the other host: here its processes never run again."""
    return entry.role == "source" and State(entry.state) in _GONE


def require_settled(directory: Path, container: str, name: str) -> None:
    """Raise Conflict when only the migration itself may touch the container.

    At the source: it was decided that the container lives on elsewhere; started here again there would be two.
    At the destination: it is prepared, perhaps the only copy that there is.
    """
    for entry in of_container(directory, container):
        state = State(entry.state)
        if decided(entry):
            why, hint = f"it has moved to {entry.peer}", "ckpt recover finishes that"
        elif entry.role == "destination" and state is State.PREPARED:
            why = f"it is arriving from {entry.peer} and waits for that host's word"
            hint = (
                "ckpt recover there; here --assume committed|aborted, if that host is gone for good"
            )
        elif entry.role == "destination" and state is State.COMMITTED:
            why, hint = f"it has arrived from {entry.peer} but not begun to run", "ckpt recover"
            if entry.is_lazy:
                why = f"part of its memory is still at {entry.peer}"
                hint = "it comes by itself; else ckpt recover at that host"
        else:
            continue
        raise Conflict(
            doing="working on",
            target=f"container {name}",
            why=f"{why} (migration {entry.id})",
            hint=hint,
        )
