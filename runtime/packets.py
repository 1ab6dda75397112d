"""Packets between two processes of ours (SOCK_SEQPACKET). Few imports: the monitor has this loaded."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def past_reset(receive: Callable[..., T], *args: object) -> T:
    """RECEIVE(*ARGS), the next packet or the end, also of a peer that closed with a word of ours unread.

    The kernel reports that first, once (ECONNRESET); what the peer said before is still there.
    """
    while True:
        try:
            return receive(*args)
        except ConnectionResetError:
            continue
