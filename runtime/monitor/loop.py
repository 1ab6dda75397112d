"""One poll loop in one thread: children are forked without fear of locks."""

from __future__ import annotations

import select

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT


class Loop:
    """Descriptors, what is waited for on each, and who is called then."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}

    def watch(self, fd: int, events: int, handler: Callable[[], object]) -> None:
        self._poll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a descriptor; for one that isn't watched nothing happens."""
        if fd in self._handlers:
            self._poll.modify(fd, events)

    def watched(self, fd: int) -> bool:
        return fd in self._handlers

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def once(self) -> None:
        """Wait until something happens, and handle it."""
        for fd, _ in self._poll.poll():
            handler = self._handlers.get(fd)  # an earlier handler may have forgotten this one
            if handler is not None:
                handler()
