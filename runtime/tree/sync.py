"""The source's side of keeping a copy of a tree up to date, in rounds."""

from __future__ import annotations

from collections.abc import Collection

from .ids import IdShift
from .index import EMPTY, Changes, Index, diff, known, snapshot
from .send import BlockMap, Sent, send


class Synchroniser:
    """Sends a tree once, and then only what changed since, for as many rounds as one likes.

    Each round() is one stream for receive() into the same directory, which starts empty (or with
    nothing but the directory itself). The last round runs with `frozen`, after which both trees are
    equal. After a RuntimeFault the copy is of no use: begin anew with another object.
    """

    def __init__(self, directory: str, *, id_shift: IdShift = None) -> None:
        self.directory = directory
        self._shift = id_shift
        self._known: Index = EMPTY
        self._blocks: BlockMap = {}

    def pending(self, suspects: Collection[bytes] = ()) -> Changes:
        """What a round would send now; nothing is sent. Raises RuntimeFault."""
        return diff(self._known, snapshot(self.directory), suspects)

    def round(self, fd: int, *, frozen: bool = False, suspects: Collection[bytes] = ()) -> Sent:
        """Send one round to `fd`. Raises RuntimeFault.

        `suspects`: relative paths that count as changed (mapped.shared_writable() of the tasks).
        """
        now = snapshot(self.directory)
        changes = diff(self._known, now, suspects)
        sent = send(
            self.directory,
            changes,
            fd,
            id_shift=self._shift,
            blocks=self._blocks,
            frozen=frozen,
        )
        self._known = known(self._known, now, changes, sent.missed)
        return sent
