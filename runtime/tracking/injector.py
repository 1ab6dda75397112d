"""The process that injects: `python -m runtime.tracking.injector FD`, one for each tracker.

It is a process of its own so that nothing that happens to the tracker happens in the middle of an injection: the
tracker may be killed, interrupted, out of memory, or wait for Python's lock. It has a session of its own, ignores
signals, and ends when its socket does, after the injection that it is in. Should itself be killed, the stopped thread
finds back alone (frame.py).

The exchange, over a SOCK_SEQPACKET socket: a request is struct "=Bi", what and which process; the answer "=Biq", what
came of it, a number, nanoseconds for which the thread stood; then a reason as text, and with OPENED a descriptor.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import sys

from runtime.tracking import injection
from runtime.tracking.injection import Gone, Refused, Stuck, Timing

OPEN, CLOSE_STRAYS = 1, 2
OPENED, CLOSED, REFUSED, TRY_AGAIN, GONE = range(5)
REQUEST = struct.Struct("=Bi")
ANSWER = struct.Struct("=Biq")
READY = b"ready"
LONGEST = 512


def main(fd: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        # A thread stands still while we work: don't let others take the processor from us meanwhile.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    gc.disable()
    # A tracker that is killed may leave us nobody to send to, or, with our answer unread, a connection that is reset.
    with socket.socket(fileno=fd) as peer, contextlib.suppress(ConnectionError):
        peer.send(READY)
        while request := peer.recv(REQUEST.size):
            what, pid = REQUEST.unpack(request)
            if not _serve(peer, what, pid):
                return


def _serve(peer: socket.socket, what: int, pid: int) -> bool:
    """Do one thing; whether to go on."""
    timing = Timing()
    code, number, why, fds, go_on = REFUSED, 0, "", [], True
    try:
        if what == OPEN:
            fds.append(injection.open_userfaultfd(pid, timing))
            code = OPENED
        else:
            number = injection.close_strays(pid)
            code = CLOSED
    except Gone:
        code = GONE
    except Refused as refused:
        code, why = (TRY_AGAIN if refused.again else REFUSED), refused.why
        go_on = not isinstance(refused, Stuck)
    except OSError as error:
        why = f"{error.filename or 'a system call'}: {error.strerror}"
    answer = ANSWER.pack(code, number, timing.stopped_ns) + why.encode()[: LONGEST - ANSWER.size]
    try:
        socket.send_fds(peer, [answer], fds)
    except OSError:
        return False  # the tracker is gone; what was opened closes with us
    finally:
        for fd in fds:
            os.close(fd)
    return go_on


if __name__ == "__main__":
    main(int(sys.argv[1]))
