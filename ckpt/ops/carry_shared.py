"""Memory that the processes of a container share (anonymous, memfds), copied while they run; beside carry.py.

    look(), send()    in each round: which objects there are, and what of them changed
    hide()            asked by the veil, when CRIU comes to the content of one: it is to find nothing in those we carry
    look(frozen)      the last time: exact, since nobody can write any more
    settle()          those that CRIU didn't come to, or that it was not to leave to us, are void at the destination

An object that appears after the last round isn't carried: CRIU dumps it, as it does with System V segments, and with
the smallest where there are too many.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import NotFound
from runtime.pagesource.sink import PageSink
from runtime.pagesource.wire import MAX_NAME, SHARED_FROM, Shared
from runtime.shared.find import SharedObject, device, largest, objects
from runtime.shared.follow import Followed
from runtime.tracking.ranges import Range, size

Check = Callable[[], None]
log = logging.getLogger(__name__)
_INODES = 1 << 32
"""CRIU names the content of a memfd by 32 bits of its inode."""
MOST = 200
"""Objects: each takes a descriptor at both ends. A program with more of them has small ones."""


@dataclass(slots=True)
class _Carried:
    number: int
    content: Followed
    dirty: list[Range] = field(default_factory=list)
    gone: list[Range] = field(default_factory=list)
    hidden: bool = False


class SharedCarrier:
    """PIDS: the container's processes now. PROGRAMS: where what we compile lies. Close it.

    look() and hide() may be called by other threads than the rest.
    """

    def __init__(self, sender: PageSink, pids: Callable[[], list[int]], programs: Path) -> None:
        self._sender = sender
        self._pids = pids
        self._programs = programs
        self._carried: dict[int, _Carried] = {}
        self._next = SHARED_FROM

    def close(self) -> None:
        for one in self._carried.values():
            one.content.close()
        self._carried.clear()

    # ---- while it runs

    def look(self, *, frozen: bool = False) -> int:
        """What is to be sent, until send(): how many bytes."""
        if not frozen:
            self._keep_up()
        total = 0
        for one in self._carried.values():
            one.dirty, one.gone = one.content.changed(last=frozen)
            total += size(one.dirty)
        return total

    def _keep_up(self) -> None:
        found = objects(self._pids())
        for inode in self._carried.keys() - found.keys():
            self._end(self._carried.pop(inode))
        new = [found[inode] for inode in found.keys() - self._carried.keys()]
        for one in largest(new, MOST - len(self._carried)):
            self._begin(one)

    def _begin(self, found: SharedObject) -> None:
        name = os.fsencode(found.name)
        if found.inode >= _INODES or len(name) > MAX_NAME:
            return
        try:
            content = Followed(found, self._programs)
        except NotFound as fault:
            log.debug("not carried: %s", fault)
            return
        one = _Carried(self._next, content)
        self._next += 1
        self._carried[found.inode] = one
        self._sender.shared(one.number, Shared(found.inode, content.sealable, name))

    def _end(self, one: _Carried) -> None:
        self._sender.ended(one.number)
        one.content.close()

    def send(self, check: Check, *, quick: bool = False) -> int:
        """What look() found, as it is now; returns bytes."""
        pages = 0
        for one in self._carried.values():
            check()
            if one.gone:
                self._sender.gone(one.number, one.gone)
            pages += self._sender.send(one.number, one.content, one.dirty, quick=quick)
            one.dirty, one.gone = [], []
        return pages * 4096

    # ---- in the frozen window

    def hide(self, of: int, inode: int) -> bool:
        """For runtime.veil.Veil, which asks in a thread of its own."""
        one = self._carried.get(inode) if of == device() else None
        if one is None:
            return False
        one.hidden = True
        return True

    def hidden(self) -> dict[int, int]:
        """The number of each object that CRIU was not shown, by its inode."""
        return {inode: one.number for inode, one in self._carried.items() if one.hidden}

    def settle(self) -> None:
        """CRIU is done: what it has dumped itself is void."""
        for one in self._carried.values():
            if not one.hidden:
                self._sender.ended(one.number)
