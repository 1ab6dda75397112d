"""Whether compressing pays: decided for each record from what was measured on this lane a moment ago.

Reading and compressing happen in one thread, writing in another, so the slower of the two sets the pace:

    plain        what the lane takes
    compressed   what the compressor takes in, or the lane's pace times the ratio, whichever is less

Compressing costs a core that the container may want, so it has to win clearly. What isn't being done now is tried now
and then, because memory and lanes change.
"""

from __future__ import annotations

WIN = 1.15
"""How much faster it must be."""
PROBE_EVERY = 32
"""Records between two tries of what was decided against; at 1 MiB each, the tries cost 3 percent."""
_WEIGHT = 0.25
"""Of the latest record in the averages."""


def better_compressed(lane: float, compressor: float, ratio: float) -> bool:
    """LANE, COMPRESSOR: bytes per second (of the lane's, and of pages taken in); RATIO: plain by compressed size."""
    return min(compressor, lane * ratio) > lane * WIN


class Chooser:
    """The averages, and the decision. Knows no clock: it is told durations in seconds."""

    def __init__(self) -> None:
        self._lane = 0.0
        self._compressor = 0.0
        self._ratio = 1.0
        self._since_probe = 0

    def choose(self) -> bool:
        """Whether to compress the next record."""
        if not self._compressor:
            return True
        wanted = bool(self._lane) and better_compressed(self._lane, self._compressor, self._ratio)
        self._since_probe += 1
        if not wanted and self._since_probe >= PROBE_EVERY:
            self._since_probe = 0
            return True
        return wanted

    def compressed(self, plain: int, packed: int, seconds: float) -> None:
        self._compressor = _average(self._compressor, plain / max(seconds, 1e-9))
        self._ratio = _average(self._ratio, plain / packed)

    def sent(self, size: int, seconds: float) -> None:
        """SIZE bytes were taken by the lane. Small writes say nothing: they vanish in its buffers."""
        if size >= 1 << 16:
            self._lane = _average(self._lane, size / max(seconds, 1e-9))


def _average(old: float, new: float) -> float:
    return new if not old else old + _WEIGHT * (new - old)
