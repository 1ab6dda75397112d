"""TCP, UDP and other sockets; both ends of each connection are in the container."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

from conductor import claim, same


def _pair(family: int, address: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A listener, and both ends of a connection to it."""
    server = socket.socket(family)
    server.bind((address, 0))
    server.listen(5)
    client = socket.socket(family)
    client.connect(server.getsockname()[:2])
    served, _ = server.accept()
    return server, client, served


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    sock.settimeout(60)
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise AssertionError(f"the connection ended after {len(data)} of {count} bytes")
        data += more
    return data


def _established(family: int, address: str) -> Iterator[None]:
    server, client, served = _pair(family, address)
    while True:
        names = (
            client.getsockname(),
            client.getpeername(),
            served.getsockname(),
            served.getpeername(),
        )
        # Until neither queue takes more: unread, unacknowledged and unsent bytes.
        client.setblocking(False)
        sent = b""
        while True:
            piece = os.urandom(65536)
            try:
                sent += piece[: client.send(piece)]
            except BlockingIOError:
                break
        client.setblocking(True)
        served.send(b"unread answer")
        yield
        same(
            (
                client.getsockname(),
                client.getpeername(),
                served.getsockname(),
                served.getpeername(),
            ),
            names,
        )
        same(_exactly(served, len(sent)) == sent, True, "whether every byte came, in order")
        same(_exactly(client, 13), b"unread answer")
        with socket.socket(family) as another:
            another.connect(server.getsockname()[:2])
            accepted, _ = server.accept()
            another.send(b"new")
            same(_exactly(accepted, 3), b"new", "through a new connection")
            accepted.close()


@claim
def tcp_with_data_in_flight() -> Iterator[None]:
    yield from _established(socket.AF_INET, "127.0.0.1")


@claim
def tcp_over_ipv6_with_data_in_flight() -> Iterator[None]:
    yield from _established(socket.AF_INET6, "::1")


@claim
def tcp_half_closed() -> Iterator[None]:
    _, client, served = _pair(socket.AF_INET, "127.0.0.1")
    client.send(b"the last request")
    client.shutdown(socket.SHUT_WR)
    first = True
    while True:
        yield
        if first:
            same(_exactly(served, 16), b"the last request")
            same(served.recv(10), b"", "what comes after the end")
            first = False
        served.send(b"answer")
        same(_exactly(client, 6), b"answer")


@claim
def tcp_options() -> Iterator[None]:
    _, client, _ = _pair(socket.AF_INET, "127.0.0.1")
    options = {
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 77,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 7,
        (socket.SOL_SOCKET, socket.SO_REUSEADDR): 1,
        (socket.SOL_SOCKET, socket.SO_PRIORITY): 3,
    }
    for (level, name), value in options.items():
        client.setsockopt(level, name, value)
    wanted = {key: client.getsockopt(*key) for key in options}
    buffers = [
        client.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)
    ]
    timeout = struct.pack("ll", 5, 500_000)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    while True:
        yield
        same({key: client.getsockopt(*key) for key in options}, wanted)
        same(client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), timeout)
        found = [
            client.getsockopt(socket.SOL_SOCKET, name)
            for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)
        ]
        assert all(new >= old for new, old in zip(found, buffers, strict=True)), (found, buffers)


@claim
def listening_sockets() -> Iterator[None]:
    listeners = []
    for family, address in (
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::"),
    ):
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, 0))
        sock.listen(9)
        listeners.append(sock)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    twins = []
    port = 0
    for _ in range(2):
        twin = socket.socket()
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        twin.bind(("127.0.0.1", port))
        twin.listen()
        port = twin.getsockname()[1]
        twins.append(twin)
    names = [sock.getsockname() for sock in (*listeners, bound, *twins)]

    def backlogs() -> list[str]:
        found = []
        for sock in listeners:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            found.append(str(struct.unpack_from("II", info, 28)))
        return found

    while True:
        yield
        same([sock.getsockname() for sock in (*listeners, bound, *twins)], names)
        for sock in listeners:
            host = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            with socket.socket(sock.family) as client:
                client.connect((host, sock.getsockname()[1]))
                accepted, _ = sock.accept()
                accepted.close()
        same(listeners[2].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 1)
        bound.listen()
        bound.close()
        bound = socket.socket()
        bound.bind(("127.0.0.1", names[3][1]))


@claim
def accepting_goes_on_in_a_blocked_thread() -> Iterator[None]:
    import threading

    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    while True:
        yield
        with socket.socket() as client:
            client.settimeout(60)
            client.connect(server.getsockname())
            client.send(b"echo")
            same(client.recv(100), b"echo")


@claim
def udp_sockets() -> Iterator[None]:
    for_each = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        one, other = (
            socket.socket(family, socket.SOCK_DGRAM),
            socket.socket(family, socket.SOCK_DGRAM),
        )
        one.bind((address, 0))
        other.bind((address, 0))
        other.connect(one.getsockname()[:2])
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for_each.append((one, other))
    while True:
        names = [(a.getsockname(), b.getsockname(), b.getpeername()) for a, b in for_each]
        yield
        same([(a.getsockname(), b.getsockname(), b.getpeername()) for a, b in for_each], names)
        for one, other in for_each:
            other.send(b"datagram")
            data, sender = one.recvfrom(100)
            same((data, sender), (b"datagram", other.getsockname()))
            same(one.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST), 1)


@claim
def netlink_socket() -> Iterator[None]:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    while True:
        yield
        sock.send(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0))  # RTM_GETLINK, dump
        assert select.select([sock], [], [], 60)[0]
        kind = struct.unpack_from("=IH", sock.recv(65536))[1]
        same(kind, 16, "the answer's type")
        sock.setblocking(False)
        while True:
            try:
                sock.recv(65536)
            except BlockingIOError:
                break
        sock.setblocking(True)


@claim
def interfaces_addresses_and_routes() -> Iterator[None]:
    def look() -> dict[str, object]:
        found: dict[str, object] = {"names": socket.if_nameindex()}
        for name in ("route", "if_inet6", "ipv6_route"):
            with open(f"/proc/net/{name}") as file:
                lines = [line.split() for line in file]
            # The last columns of ipv6_route count uses.
            found[name] = sorted(line[:4] if name != "route" else line[:8] for line in lines)
        return found

    wanted = look()
    while True:
        yield
        now = look()
        # Flags of cached routes come and go.
        for name in wanted:
            same(now[name], wanted[name], name)
