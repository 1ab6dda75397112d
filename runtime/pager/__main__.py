"""The pager's two processes.

usage: python -I -S __main__.py CONTROL LISTENER FETCHERS DIRECTORY

The keeper does nothing but wait for the worker, its child, with which it shares one table of descriptors (clone(2),
CLONE_FILES): whatever the worker receives is held by both. So when the worker is killed (say for want of memory), the
userfaultfds stay open and the tasks wait for their pages instead of getting zeros; the keeper starts another worker,
which goes on from the journal. When the keeper is killed, the worker goes on alone.

A worker that keeps failing isn't started for ever; then the keeper holds the descriptors, and the tasks wait for
whoever looks at what is wrong.
"""

from __future__ import annotations

import os
import signal
import sys

ATTEMPTS = 20


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    from runtime.memory_calls import fork_sharing_files
    from runtime.pager.journal import Journal

    if os.fork():  # nobody's child: what becomes of the starter doesn't matter
        os._exit(0)
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        # Tasks depend on us, and we end by ourselves as soon as they don't.
        signal.signal(number, signal.SIG_IGN)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-900")
    except OSError:
        pass  # needs CAP_SYS_RESOURCE
    journal = Journal()
    sockets = tuple(map(int, sys.argv[1:5]))
    for attempt in range(ATTEMPTS):
        child = fork_sharing_files()
        if child == 0:
            work(journal, sockets, first=attempt == 0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        print(f"the pager's worker ended with status {status:#x}", file=sys.stderr, flush=True)
    while True:
        signal.pause()


def work(journal: object, sockets: tuple[int, ...], *, first: bool) -> None:
    """Never returns."""
    from runtime.pager.journal import Journal
    from runtime.pager.worker import Worker

    assert isinstance(journal, Journal)
    status = 1
    try:
        worker = Worker(journal, *sockets)
        if not first:
            worker.take_over()
        worker.run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
