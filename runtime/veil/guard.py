"""Answers the notifications of one CRIU; see the package for its part in the play.

usage: python -I -S guard.py SOCKET CONTROL

SOCKET: where the listener comes from (the launcher's other end). CONTROL: a stream socket to the caller: we send a
process id (u32); the answer is a count (u32) and that many pairs of addresses (u64), or REFUSED. Its end is ours.
"""

from __future__ import annotations

import os
import select
import socket
import sys


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    from runtime.veil.answer import Answerer

    source = socket.socket(fileno=int(sys.argv[1]))
    control = socket.socket(fileno=int(sys.argv[2]))
    # Imports are done: from here on CRIU can be behind the filter.
    control.sendall(b"\xff\xff\xff\xff")
    _, fds, _, _ = socket.recv_fds(source, 1, 1)
    source.close()
    if not fds:
        return
    answerer = Answerer(fds[0], control)
    poller = select.poll()
    poller.register(fds[0], select.POLLIN)
    # The caller says nothing unasked: its end is all that can come.
    poller.register(control, select.POLLRDHUP)
    while True:
        for fd, events in poller.poll():
            if fd == control.fileno() or not events & select.POLLIN:
                return  # the caller is gone, or nobody is left behind the filter
            answerer.answer_one()


if __name__ == "__main__":
    main()
