"""Which pages need not travel: zeros, and pages equal to one that went before.

Looking must cost far less than sending, in Python as well. So each page is first known by two of its 512 words, taken
for a whole batch with two strided slices. Only a page whose two words are zero is compared with zeros, and only one
whose two words were seen at another place is looked at closer:

    its bytes are compared with those of the page last seen with these words      0.4 us, for a few thousand pages
    else it is hashed (blake3, 32 bytes: equal digests are equal pages)           2.3 us, for many more

So the first copy of a page isn't remembered, the second is, and is sent as well, and from the third on there is nothing
to send: memory rich in duplicates has many of each.

The destination keeps pages by place, so a reference is to a place, and good only while what was last sent for that
place stands: forget() is called before a place is sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from runtime.pagesource.wire import PAGE, Place

_WORDS = PAGE // 8
_FIRST, _SECOND = 5, 261
"""Words that a page is known by: not the first, in which many structures have equal heads."""
_ZERO_PAGE = bytes(PAGE)
LIMIT = 1 << 17
"""Places and words remembered: about 40 MiB at most."""
CONTENTS = 1 << 12
"""Pages whose bytes are remembered: 16 MiB."""

Words = tuple[int, int]


@dataclass(slots=True)
class Condensed:
    """kept: indices [first, last) of pages to be sent; zeros: addresses; same: addresses; equals: where the destination
    has a page that is equal, for each of `same`."""

    kept: list[tuple[int, int]] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    equals: list[Place] = field(default_factory=list)


class Condenser:
    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._seen: dict[Words, Place] = {}
        self._digests: dict[bytes, Place] = {}
        self._at: dict[Place, bytes] = {}  # the inverse of _digests
        self._contents: dict[Words, tuple[bytes, Place]] = {}

    def forget(self, task: int, runs: Sequence[tuple[int, int]]) -> None:
        """What was sent for these places no longer stands."""
        if not self._at:
            return
        if sum(end - start for start, end in runs) // PAGE > len(self._at):
            stale = [
                place
                for place in self._at
                if place[1] == task and any(start <= place[0] < end for start, end in runs)
            ]
        else:
            stale = [
                place
                for start, end in runs
                for address in range(start, end, PAGE)
                if (place := (address, task)) in self._at
            ]
        self._forget(stale)

    def forget_task(self, task: int) -> None:
        self._forget([place for place in self._at if place[1] == task])

    def _forget(self, places: Sequence[Place]) -> None:
        for place in places:
            del self._digests[self._at.pop(place)]
        if places:
            # Rare enough for the simple way: a page that has duplicates is seldom written.
            stale = set(places)
            self._contents = {k: v for k, v in self._contents.items() if v[1] not in stale}

    def condense(
        self, task: int, runs: Sequence[tuple[int, int]], view: memoryview, *, quick: bool = False
    ) -> Condensed:
        """Look at the pages of RUNS, whose bytes lie in VIEW one after the other. quick: for zeros only.

        References may be to places of this very batch, whose pages therefore must be sent before the references.
        """
        self.forget(task, runs)
        addresses = [address for start, end in runs for address in range(start, end, PAGE)]
        out = Condensed()
        seen = self._seen
        room = self._limit - len(seen)
        first = 0
        for index, (key, address) in enumerate(
            zip(_words(view, len(addresses)), addresses, strict=True)
        ):
            if key == (0, 0):
                # Not zeros, but nearly: words that say nothing. Such pages compress well.
                if bytes(view[index * PAGE : index * PAGE + PAGE]) != _ZERO_PAGE:
                    continue
                out.zeros.append(address)
            elif quick:
                continue
            else:
                before = seen.get(key)
                if before is None:
                    if room > 0:
                        seen[key] = (address, task)
                        room -= 1
                    continue
                if before == (address, task):
                    continue  # written again, but not where these words are
                page = view[index * PAGE : index * PAGE + PAGE]
                place = self._equal(key, page, (address, task))
                if place is None:
                    continue
                out.same.append(address)
                out.equals.append(place)
            if index > first:
                out.kept.append((first, index))
            first = index + 1
        if len(addresses) > first:
            out.kept.append((first, len(addresses)))
        return out

    def _equal(self, key: Words, page: memoryview, here: Place) -> Place | None:
        """Where the destination has an equal page; else this place is remembered for the next."""
        data = bytes(page)
        known = self._contents.get(key)
        if known is not None and known[0] == data:
            return known[1]
        digest = blake3(data).digest()
        place = self._digests.get(digest)
        if place is None and len(self._at) < self._limit:
            self._digests[digest] = here
            self._at[here] = digest
        if place is not None or here in self._at:
            if len(self._contents) >= CONTENTS:
                del self._contents[next(iter(self._contents))]
            self._contents[key] = (data, place or here)
        return place


def _words(view: memoryview, pages: int) -> list[Words]:
    words = view[: pages * PAGE].cast("Q")
    return list(zip(words[_FIRST::_WORDS].tolist(), words[_SECOND::_WORDS].tolist(), strict=True))
