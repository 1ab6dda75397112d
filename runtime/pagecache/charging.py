"""The program in the container's cgroup that charge.py starts: allocates pages of memfds, which are charged to it.

`charging.py FD`: a SEQPACKET socket. A request is pairs of u64 (start, end), with the memfd; the answer an errno, u32.
Standard library only, and few modules: it is started without site-packages.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

_MAX = 1 << 16


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, fds, _, _ = socket.recv_fds(control, _MAX, 1)
        if not data:
            return
        failed = 0
        try:
            for start, end in struct.iter_unpack("=2Q", data):
                os.posix_fallocate(fds[0], start, end - start)
        except OSError as error:
            failed = error.errno or 5
        finally:
            for fd in fds:
                os.close(fd)
        control.send(struct.pack("=I", failed))


if __name__ == "__main__":
    main()
