"""Which pages need not travel: zeros, and pages equal to one that went before.

Looking must cost far less than sending, in Python as well. So each page is first known by two of its 512 words, taken
for a whole batch with two strided slices. Only a page whose two words are zero is compared with zeros, and only one
whose two words were seen before is hashed (blake3, 32 bytes: equal digests are equal pages). So the first copy of a
page isn't known by its digest, the second is sent as well, and from the third on there is nothing to send: memory rich
in duplicates has many of each.

The destination keeps pages by place, so a reference is to a place, and only good while what was last sent for that
place stands: forget() is called before a place is sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from runtime.pagesource.wire import PAGE, Same

_WORDS = PAGE // 8
_FIRST, _SECOND = 5, 261
"""Words that a page is known by: not the first, in which many structures have equal heads."""
_ZERO_PAGE = bytes(PAGE)
LIMIT = 1 << 17
"""Places and words remembered: about 40 MiB at most."""


@dataclass(slots=True)
class Condensed:
    """kept: indices [first, last) of pages to be sent; zeros: addresses; same: references."""

    kept: list[tuple[int, int]] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)
    same: list[Same] = field(default_factory=list)


class Condenser:
    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._seen: set[tuple[int, int]] = set()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._digests: dict[tuple[int, int], bytes] = {}

    def forget(self, task: int, runs: Sequence[tuple[int, int]]) -> None:
        """What was sent for these places no longer stands."""
        if not self._digests:
            return
        if sum(end - start for start, end in runs) // PAGE > len(self._digests):
            stale = [
                place
                for place in self._digests
                if place[0] == task and any(start <= place[1] < end for start, end in runs)
            ]
            for place in stale:
                del self._places[self._digests.pop(place)]
            return
        for start, end in runs:
            for address in range(start, end, PAGE):
                digest = self._digests.pop((task, address), None)
                if digest is not None:
                    del self._places[digest]

    def forget_task(self, task: int) -> None:
        for place in [place for place in self._digests if place[0] == task]:
            del self._places[self._digests.pop(place)]

    def condense(self, task: int, runs: Sequence[tuple[int, int]], view: memoryview) -> Condensed:
        """Look at the pages of RUNS, whose bytes lie in VIEW one after the other.

        References may be to places of this very batch, whose pages therefore must be sent before the references.
        """
        self.forget(task, runs)
        addresses = [address for start, end in runs for address in range(start, end, PAGE)]
        words = view[: len(addresses) * PAGE].cast("Q")
        keys = list(
            zip(words[_FIRST::_WORDS].tolist(), words[_SECOND::_WORDS].tolist(), strict=True)
        )
        words.release()
        out = Condensed()
        seen = self._seen
        first = 0
        for index, key in enumerate(keys):
            if key == (0, 0):
                data = bytes(view[index * PAGE : index * PAGE + PAGE])
                if data == _ZERO_PAGE:
                    out.zeros.append(addresses[index])
                    if index > first:
                        out.kept.append((first, index))
                    first = index + 1
                    continue
            if key not in seen:
                if len(seen) < self._limit:
                    seen.add(key)
                continue
            place = self._place(task, addresses[index], view[index * PAGE : index * PAGE + PAGE])
            if place is not None:
                out.same.append(Same(addresses[index], addresses[index] + PAGE, place[1], place[0]))
                if index > first:
                    out.kept.append((first, index))
                first = index + 1
        if len(addresses) > first:
            out.kept.append((first, len(addresses)))
        return out

    def _place(self, task: int, address: int, page: memoryview) -> tuple[int, int] | None:
        """Where the destination has an equal page; else this place is remembered for the next."""
        digest = blake3(page).digest()
        place = self._places.get(digest)
        if place is None and len(self._places) < self._limit:
            self._places[digest] = (task, address)
            self._digests[task, address] = digest
        return place
