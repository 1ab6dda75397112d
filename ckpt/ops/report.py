"""What a migration did, or would do: for people, for machines, and for the tests that hold it against clocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ckpt.ops.forecast import Forecast
from ckpt.ops.preflight import Finding
from ckpt.ops.timeline import Timeline


@dataclass(slots=True)
class Report:
    """Times in nanoseconds, of the source's clock."""

    id: str
    name: str
    target: str
    mode: str
    state: str = ""
    lane: str = ""
    findings: list[Finding] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    """What preflight looked at: {"what", "here", "there", "ok"}."""
    forecast: Forecast | None = None
    downtime_ns: int = 0
    clock_error_ns: int = 0
    """Half the round trip in which the clocks were compared: how far the downtime may be off."""
    total_ns: int = 0
    bytes_total: int = 0
    bytes_files: int = 0
    bytes_layers: int = 0
    bytes_images: int = 0
    images_by_kind: dict[str, int] = field(default_factory=dict)
    """What CRIU took itself, while the container stood still: bytes."""
    bytes_memory: int = 0
    """Of the lane that carries memory while the container runs (warm)."""
    bytes_last: int = 0
    """Of memory in the frozen window."""
    bytes_owed: int = 0
    """Of memory that was still here when it began to run there (lazy)."""
    whole_ns: int = 0
    """From then until every page was there."""
    faults: int = 0
    """Pages that a task had to wait for meanwhile."""
    lost: str = ""
    """Why it could not go on there: pages that nobody has any more."""
    mode_why: str = ""
    """Why it is not warm."""
    tracker: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)
    rounds_why: str = ""
    phases: dict[str, int] = field(default_factory=dict)
    frozen_ns: int = 0
    """When the frozen window began; 0: it didn't."""
    timeline: Timeline = field(default_factory=Timeline)
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """By host, "source" and "destination": what environment.py tells of each."""
    outcome: str = ""
    """"moved", "planned" (a dry run), "stayed", or "unfinished": held until `ckpt recover`."""
    why: str = ""
    """It did not move for this reason."""
    hint: str = ""

    def failed(self, fault: BaseException) -> None:
        self.outcome = self.outcome or "stayed"
        self.why = str(fault) or type(fault).__name__
        self.hint = str(getattr(fault, "hint", ""))

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "outcome": self.outcome,
            "why": self.why,
            "hint": self.hint,
            "began": datetime.fromtimestamp(self.timeline.began_ns / 1e9, UTC).isoformat(
                timespec="milliseconds"
            ),
            "target": self.target,
            "mode": self.mode,
            "mode_why": self.mode_why,
            "tracker": self.tracker,
            "rounds": self.rounds,
            "rounds_why": self.rounds_why,
            "lazy": {
                "bytes": self.bytes_owed,
                "faults": self.faults,
                "whole_ms": round(self.whole_ns / 1e6, 1),
                "lost": self.lost,
            }
            if self.mode == "lazy"
            else None,
            "state": self.state,
            "lane": self.lane,
            "findings": self.findings,
            "checks": self.checks,
            "forecast": self.forecast.to_dict() if self.forecast else None,
            "downtime_ms": round(self.downtime_ns / 1e6, 1),
            "clock_error_ms": round(self.clock_error_ns / 1e6, 3),
            "total_ms": round(self.total_ns / 1e6, 1),
            "bytes": {
                "total": self.bytes_total,
                "images": self.bytes_images,
                "memory": self.bytes_memory,
                "memory_frozen": self.bytes_last,
                "files": self.bytes_files,
                "layers": self.bytes_layers,
            },
            "images_by_kind": self.images_by_kind,
            "phases_ms": {name: round(ns / 1e6, 1) for name, ns in self.phases.items()},
            "environment": self.environment,
            **self.timeline.to_dict(self.frozen_ns),
        }
