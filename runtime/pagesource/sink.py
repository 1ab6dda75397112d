"""Where the pages of tasks go, round after round: a lane to another host (send.py), or a file of this one (keep.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from runtime.pagesource.read import PageReader, Range
from runtime.pagesource.wire import Shared

Took = Callable[[Sequence[Range], memoryview], None]
"""Gets what was read: ranges, and their bytes one after the other, only lent; what follows them counts not."""


class PageSink(Protocol):
    """Takes pages by task (its process id as the container sees it) and address. Later ones replace earlier ones."""

    written: int
    """Bytes that went out so far."""

    def send(
        self,
        task: int,
        reader: PageReader,
        runs: Iterable[Range],
        *,
        quick: bool = False,
        took: Took | None = None,
    ) -> int:
        """The pages of RUNS as they are now; how many there were. Raises NotFound when the task has ended.

        quick: in the frozen window, where time counts more than bytes. took: called with all that is read.
        """

    def shared(self, number: int, shared: Shared) -> None:
        """From here on NUMBER stands for what tasks share with each other; its pages have offsets for addresses."""

    def gone(self, task: int, runs: Sequence[Range]) -> None:
        """What was sent for RUNS is void: there are no such pages any more, or they are not ours to carry."""

    def ended(self, task: int) -> None:
        """All pages of the task are void."""

    def mark(self) -> None:
        """Here everything sent so far belongs together."""

    def flush(self) -> None:
        """Until everything is out. Raises what went wrong with it."""

    def abort(self) -> None:
        """From any thread: no more goes out."""

    def close(self) -> None:
        """Give back what it holds."""
