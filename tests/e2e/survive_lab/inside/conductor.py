"""The checking workload: one process per claim, each of which sets something up and says later whether it survived.

    python3 /survive/conductor.py run [CLAIM...]      as the container's command
    python3 /survive/conductor.py check               in the container, later: a JSON object {claim: "" | what is wrong}
    python3 /survive/conductor.py list

A claim is a generator. Up to its `yield` it sets something up; what comes after looks at it and raises if anything
changed. It then sets up again and yields again, so it can be checked as often as one likes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator

Claim = Callable[[], Iterator[None]]
CLAIMS: dict[str, Claim] = {}
SOCKET = "/tmp/survive.sock"


def claim(function: Claim) -> Claim:
    """Register a claim under its function's name."""
    CLAIMS[function.__name__] = function
    return function


def same(found: object, wanted: object, what: str = "it") -> None:
    """Raise AssertionError unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what} is {found!r}, not {wanted!r}")


def _send(sock: socket.socket, text: str) -> None:
    data = text.encode()
    sock.sendall(struct.pack("I", len(data)) + data)


def _receive(sock: socket.socket) -> str:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = sock.recv(count - len(data))
            if not more:
                raise EOFError("its process ended")
            data += more
        return data

    return exactly(struct.unpack("I", exactly(4))[0]).decode()


def _perform(function: Claim, channel: socket.socket) -> None:
    """The life of a claim's process."""
    wrong = ""
    course = function()
    while True:
        if not wrong:
            try:
                next(course)
            except BaseException:
                wrong = traceback.format_exc(limit=-3)
        _send(channel, wrong)
        _receive(channel)


class Conductor:
    """All the claims' processes."""

    def __init__(self, names: list[str]) -> None:
        self._channels: dict[str, socket.socket] = {}
        for name in names:
            ours, theirs = socket.socketpair()
            if os.fork() == 0:
                ours.close()
                for other in self._channels.values():
                    other.close()
                os.setsid()
                try:
                    _perform(CLAIMS[name], theirs)
                finally:
                    os._exit(1)
            theirs.close()
            ours.settimeout(30)
            self._channels[name] = ours
            # One at a time: what goes wrong at the set-up is known by name.
            self._first(name)

    def _first(self, name: str) -> None:
        wrong = self._hear(name)
        if wrong:
            print(f"setting up {name}: {wrong}", flush=True)
            sys.exit(3)

    def _hear(self, name: str) -> str:
        try:
            return _receive(self._channels[name])
        except (EOFError, OSError) as error:
            return f"{error}"

    def check(self) -> dict[str, str]:
        report = {}
        for name, channel in self._channels.items():
            try:
                _send(channel, "check")
            except OSError as error:
                report[name] = f"its process is gone: {error}"
                continue
            report[name] = self._hear(name)
        return report


def _run(names: list[str]) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    conductor = Conductor(names or list(CLAIMS))
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    server = socket.socket(socket.AF_UNIX)
    server.bind(SOCKET)
    server.listen()
    print("READY", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            _send(connection, json.dumps(conductor.check()))


def _check() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        print(_receive(sock))


def main() -> None:
    # Imported under its own name by the claims: be that module, not a second one.
    sys.modules["conductor"] = sys.modules["__main__"]
    import files  # noqa: F401
    import ipc  # noqa: F401
    import memory  # noqa: F401
    import net  # noqa: F401
    import processes  # noqa: F401
    import sandbox  # noqa: F401
    import timing  # noqa: F401

    verb, *names = sys.argv[1:]
    if verb == "run":
        _run(names)
    elif verb == "check":
        _check()
    else:
        print("\n".join(CLAIMS))


if __name__ == "__main__":
    main()
