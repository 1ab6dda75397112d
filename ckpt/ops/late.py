"""What is known only in the frozen window, besides images and files: a small part of every checkpoint.

The ends of jobs, input that nobody has read yet, and what CRIU leaves out of its images. It comes last but for CRIU's
inventory, so it is here before anything is restored.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runtime.control import Control
from runtime.criu.affinity import Affinity
from runtime.criu.queues import Queue
from runtime.errors import BadInput

NAME = "late.json"
MAX_SIZE = 16 << 20
_PIECE = 16 * 1024


@dataclass(slots=True)
class Late:
    """jobs: by number, as in status.json. alive: numbers of those that run. input: bytes by job, 0 is the container."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    alive: list[int] = field(default_factory=list)
    input: dict[int, bytes] = field(default_factory=dict)
    affinity: Affinity = field(default_factory=dict)
    queues: list[Queue] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        return json.dumps(
            {
                "jobs": self.jobs,
                "alive": self.alive,
                "input": {k: base64.b64encode(data).decode() for k, data in self.input.items()},
                "affinity": self.affinity,
                "queues": [queue.to_dict() for queue in self.queues],
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Late:
        """Raises BadInput: it may come from anywhere."""
        try:
            raw = json.loads(data)
            return cls(
                jobs={str(int(k)): dict(job) for k, job in raw["jobs"].items()},
                alive=[int(number) for number in raw["alive"]],
                input={
                    int(k): base64.b64decode(text, validate=True)
                    for k, text in raw["input"].items()
                },
                affinity={int(k): [int(c) for c in cpus] for k, cpus in raw["affinity"].items()},
                queues=[Queue.from_dict(queue) for queue in raw["queues"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise BadInput(
                doing="reading", target=NAME, why=f"it is not what it should be: {error}"
            ) from None

    def settle(self, control: Control) -> None:
        """Every task is frozen: have the monitor bring its streams to rest, and learn what it knows."""
        control.send(op="settle")
        while True:
            answer = control.expect(60.0, doing="settling")
            if "input" in answer:
                job = int(answer["job"])
                self.input[job] = self.input.get(job, b"") + base64.b64decode(answer["input"])
            elif "alive" in answer:
                self.alive = answer["alive"]
                return
            else:
                self.jobs.update(answer["jobs"])

    def carry_on(self, control: Control) -> None:
        """Tell the new monitor, before anything runs."""
        for message in self._messages():
            control.call("carry_on", **message)

    def _messages(self) -> Iterator[dict[str, Any]]:
        for job, data in self.input.items():
            for start in range(0, len(data), _PIECE):
                piece = base64.b64encode(data[start : start + _PIECE]).decode()
                yield {"input": piece, "job": job}
        for number, info in self.jobs.items():
            yield {"jobs": {number: info}}
        yield {"alive": self.alive}
