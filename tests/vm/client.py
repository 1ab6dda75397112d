"""A ticker's client: client.py ADDRESS PORT. Ends when there is something to read on its standard input.

The ticker sends back what it gets, with a counter of its own life: a connection that broke, or a server that
began anew, or one that answered twice, shows in the numbers.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time


def main(address: str, port: int) -> int:
    sock = socket.create_connection((address, port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("connected", flush=True)
    exchanged, longest, first = 0, 0.0, None
    with sock, sock.makefile("rw") as stream:
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            began = time.monotonic()
            stream.write(f"{exchanged}\n")
            stream.flush()
            words = stream.readline().split()
            longest = max(longest, time.monotonic() - began)
            if len(words) != 2 or words[0] != str(exchanged):
                print(f"answer {words} to {exchanged}")
                return 1
            first = int(words[1]) if first is None else first
            if int(words[1]) - first != exchanged:
                print(f"counter {words[1]} after {exchanged} lines, the first was {first}")
                return 1
            exchanged += 1
    print(json.dumps({"exchanged": exchanged, "longest": longest}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
