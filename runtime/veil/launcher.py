"""Becomes CRIU, behind the filter.

usage: python -I -S launcher.py SOCKET PROGRAM SECCOMP ARGV...

SOCKET: descriptor over which the filter's listener is sent; PROGRAM: the filter in hexadecimal; SECCOMP: the number of
that system call. A script by itself, which imports next to nothing, since it runs just before each dump.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE = 1 << 5
"""Linux 5.19: a signal (CRIU has timers) doesn't interrupt a call that the guard is answering."""


def main() -> None:
    fd, program, seccomp, argv = (
        int(sys.argv[1]),
        bytes.fromhex(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4:],
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(
        struct.pack("H6xQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        listener = libc.syscall(
            ctypes.c_long(seccomp), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), fprog
        )
        if listener >= 0:
            break
    else:
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=fd) as sock:
        socket.send_fds(sock, [b"L"], [listener])
    os.close(listener)
    os.execvp(argv[0], argv)


main()
