"""What all trackers have in common: processes that they watch, each known by its number for as long as it has it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from runtime.errors import NotFound
from runtime.tracking.identity import Identity, ended
from runtime.tracking.tracker import Select
from runtime.tracking.vmas import Vma


@dataclass(slots=True)
class Watched:
    """One process. why_not: why everything in it counts as dirty each time."""

    identity: Identity
    why_not: str = ""
    vmas: list[Vma] = field(default_factory=list)

    def close(self) -> None:
        self.identity.close()


P = TypeVar("P", bound=Watched)


class Watching(Generic[P]):
    """See tracker.py for what each of these is."""

    def __init__(self, make: Callable[[Identity], P], select: Select) -> None:
        self._make = make
        self._select = select
        self._processes: dict[int, P] = {}

    def start(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(NotFound):
                self._process(pid)

    def vmas(self, pid: int) -> list[Vma]:
        process = self._processes.get(pid)
        return list(process.vmas) if process is not None else []

    def why_all(self, pid: int) -> str:
        process = self._processes.get(pid)
        return process.why_not if process is not None else "it isn't tracked"

    def taken(self, pid: int, start: int, data: bytes | memoryview) -> None:
        """The kernel knows what is written; it needn't be told what was read."""

    def stop(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def _process(self, pid: int) -> P:
        """Raises NotFound."""
        process = self._processes.get(pid)
        if process is not None:
            try:
                process.identity.check()
                return process
            except NotFound:
                self._gone(pid)
        process = self._processes[pid] = self._make(Identity(pid))
        return process

    def _gone(self, pid: int) -> NotFound:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.close()
        return ended(pid)
