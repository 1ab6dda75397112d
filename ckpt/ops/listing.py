"""A container in one line, for ps."""

from __future__ import annotations

from typing import Any

from runtime.container.record import Container


def summary(container: Container) -> dict[str, Any]:
    """One line of ps."""
    status = container.status()
    values = status.values
    text = status.state
    if status.state == "stopped":
        text = values.get("reason") or f"exited ({values.get('exit_code')})"
        if values.get("oom_killed"):
            text = f"out of memory ({values.get('exit_code')})"
    record = container.record
    return {
        "id": record.id,
        "name": record.name,
        "state": status.state,
        "state_text": text,
        "pid": status.init_pid,
        "exit_code": values.get("exit_code"),
        "oom_killed": bool(values.get("oom_killed")),
        "reason": values.get("reason", ""),
        "restarts": record.restarts,
        "created_ns": record.created_ns,
        "started_ns": values.get("started_ns", 0),
        "addresses": list(record.network.get("addresses", ())),
        "network": record.network.get("kind"),
        "args": record.spec["process"]["args"],
    }
