"""Pages of frozen tasks, as the other host asks for them: the source's half of a lazy move, once it has begun.

Two lanes, a thread each: what a task over there waits for doesn't queue behind what merely fills the memory up.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from runtime.errors import NotFound, RuntimeFault
from runtime.pagesource.read import Range, TaskReader
from runtime.pagesource.send import PageSender

Ask = tuple[int, Sequence[Range]]


class PageServing:
    """Answers asks over two senders, which it closes in the end. READERS: by task, of each lane its own.

    on_fault: called once a lane, with why it can't go on: NotFound if pages are lost, else the lane's fault.
    """

    def __init__(
        self,
        readers: Sequence[Mapping[int, TaskReader]],
        bulk: PageSender,
        urgent: PageSender,
        *,
        on_fault: Callable[[RuntimeFault], None],
    ) -> None:
        self._on_fault = on_fault
        self._over = False
        self._senders = (bulk, urgent)
        self._queues: list[queue.SimpleQueue[Ask | None]] = []
        self._threads = []
        for name, sender, mine in zip(
            ("bulk pages", "urgent pages"), self._senders, readers, strict=True
        ):
            asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(sender, asks, mine), name=name, daemon=True
            )
            self._queues.append(asks)
            self._threads.append(thread)
            thread.start()

    @property
    def written(self) -> int:
        """Bytes on both lanes."""
        return sum(sender.written for sender in self._senders)

    def ask(self, task: int, runs: Sequence[Range], *, urgent: bool) -> None:
        """Send these pages. From any thread; doesn't wait."""
        self._queues[urgent].put((task, runs))

    def finish(self) -> None:
        """All was asked for: a mark on each lane behind what was sent."""
        for asks in self._queues:
            asks.put(None)

    def close(self) -> None:
        """End now, whatever is still to be sent."""
        self._over = True
        for sender in self._senders:
            sender.abort()
        self.finish()
        for thread in self._threads:
            thread.join()
        for sender in self._senders:
            sender.close()

    def _serve(
        self,
        sender: PageSender,
        asks: queue.SimpleQueue[Ask | None],
        readers: Mapping[int, TaskReader],
    ) -> None:
        try:
            while (ask := asks.get()) is not None:
                task, runs = ask
                reader = readers.get(task)
                if reader is None:
                    raise NotFound(
                        doing="reading the memory of", target=f"task {task}", why="it has ended"
                    )
                sender.send(task, reader, runs, quick=True, whole=True)
            if not self._over:
                sender.mark()
                sender.flush()
        except RuntimeFault as fault:
            if not self._over:
                self._on_fault(fault)
