"""What vm.unprivileged_userfaultfd is when nobody needs it otherwise, whoever does just now: tests run side by side."""

from __future__ import annotations

import json

from runtime.pager import privilege


def unprivileged_userfaultfd() -> str:
    """The host's own value. Whoever holds it otherwise must be alive: else it was left so."""
    try:
        state = json.loads(privilege.LEDGER.read_text() or "{}")
    except FileNotFoundError:
        return privilege.SYSCTL.read_text().strip()
    if state.get("value") is None:
        return privilege.SYSCTL.read_text().strip()
    assert any(map(privilege.is_alive, state["holders"])), state
    return str(state["value"])
