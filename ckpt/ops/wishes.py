"""What is asked of a migration, or of the forecast of one."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.ops.convergence import Limits
from ckpt.ops.observe import SECONDS


@dataclass(frozen=True, slots=True)
class Wishes:
    """mode: auto, warm, cold or lazy. bandwidth: bytes per second for memory. lanes: kinds allowed, () for all.

    pre_copy: in a lazy move, copy the memory once before. dry_run: only preflight, and a forecast from so many seconds
    of watching.
    """

    mode: str = "auto"
    limits: Limits = Limits()
    bandwidth: float | None = None
    pre_copy: bool = False
    lanes: tuple[str, ...] = ()
    dry_run: bool = False
    seconds: float = SECONDS

    @property
    def name(self) -> str:
        """The mode as a forecast calls it."""
        return f"{self.mode} --pre-copy" if self.pre_copy else self.mode


NONE = Wishes()
