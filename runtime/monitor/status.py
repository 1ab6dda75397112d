"""`status.json`: how a container fares. Written by its monitor and by nobody else; read by everybody."""

from __future__ import annotations

import json
import os

from runtime.proc import boot_ticks

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

STARTER_GONE = "the starter ended"
"""Reason of a container whose creation nobody waited for."""
KEPT_JOBS = 100
"""Ended jobs whose exit status is remembered."""


def decode(status: int) -> dict[str, Any]:
    """A wait status as exit code (128 + signal, as a shell has it) and signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"exit_code": 128 + number, "signal": number}
    return {"exit_code": os.WEXITSTATUS(status), "signal": None}


class StatusFile:
    """The values, and their file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.values: dict[str, Any] = {
            "state": "creating",
            "monitor_pid": os.getpid(),
            "monitor_ticks": boot_ticks(os.getpid()),
            "init_pid": 0,
            "init_ticks": 0,
            "started_ns": 0,
            "ended_ns": 0,
            "exit_code": None,
            "signal": None,
            "oom_killed": False,
            "reason": "",
            "main_pid": 0,
            "jobs": {},
        }

    @property
    def state(self) -> str:
        return str(self.values["state"])

    @property
    def jobs(self) -> dict[str, Any]:
        jobs: dict[str, Any] = self.values["jobs"]
        return jobs

    def save(self, **changes: object) -> None:
        """Publish the values with CHANGES; durably where a reboot should find them."""
        self.values.update(changes)
        temporary = f"{self._path}.new"
        with open(temporary, "w") as file:
            json.dump(self.values, file)
            if self.state in ("stopped", "running"):
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, self._path)

    def forget_old_jobs(self) -> None:
        ended = [name for name, info in self.jobs.items() if "ended_ns" in info]
        for name in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self.jobs[name]
