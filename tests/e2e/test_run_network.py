"""A container serves TCP on each kind of network, and is reachable as it should be."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests import needs
from tests.e2e.box import Box, until
from tests.lab.lab import Host, Lab

pytestmark = [
    needs.root, needs.overlayfs, needs.tool("busybox", "ip"), needs.compiler, needs.bridge,
    needs.veth, needs.nftables, needs.sshd,
]  # fmt: skip

SERVE = ("sh", "-c", "while :; do echo hello | nc -l -p 8080; done")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Hosts a and b on one segment; b is where clients are."""
    with Lab(hosts=("a",), clients=("b",)) as made:
        yield made


@pytest.fixture
def running(lab: Lab) -> Iterator[list[str]]:
    """Names of containers on host a; removed at the end."""
    names: list[str] = []
    yield names
    if names:
        lab["a"].ckpt("rm", "-f", *names)


def said_to(host: Host, address: str, port: int) -> str:
    """What a server sends to a client on HOST; empty if it can't be reached."""
    with (
        host.inside(),
        contextlib.suppress(OSError),
        socket.create_connection((address, port), timeout=3) as sock,
    ):
        return sock.recv(100).decode()
    return ""


def up(
    lab: Lab, running: list[str], small_rootfs: object, name: str, *flags: str
) -> dict[str, object]:
    running.append(name)
    lab["a"].ckpt("run", "-d", "--name", name, *flags, str(small_rootfs), "--", *SERVE)
    found = lab["a"].ckpt("ps", "--json", json_output=False)
    import json

    return dict(next(one for one in json.loads(found) if one["name"] == name))


def test_none_has_loopback_only(box: Box) -> None:
    assert box.sh("ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up").split() == [
        "lo",
        "up",
    ]


def test_host_is_the_host_s_own(lab: Lab, running: list[str], small_rootfs: object) -> None:
    up(lab, running, small_rootfs, "c", "--network", "host")
    until(lambda: said_to(lab["b"], lab["a"].address, 8080) == "hello\n")


def test_bridge_is_reachable_from_its_host_and_by_published_ports(
    lab: Lab, running: list[str], small_rootfs: object
) -> None:
    found = up(lab, running, small_rootfs, "c", "-p", "18080:8080")
    addresses = [str(one).partition("/")[0] for one in found["addresses"]]  # type: ignore[attr-defined]
    four = next(one for one in addresses if "." in one)
    until(lambda: said_to(lab["a"], four, 8080) == "hello\n")
    until(lambda: said_to(lab["b"], lab["a"].address, 18080) == "hello\n")
    assert said_to(lab["b"], four, 8080) == ""  # behind its host's address
    for six in (one for one in addresses if ":" in one):
        until(lambda six=six: said_to(lab["a"], six, 8080) == "hello\n")
        until(lambda: said_to(lab["b"], lab["a"].address6, 18080) == "hello\n")


def test_containers_of_a_bridge_reach_each_other_and_the_world(
    lab: Lab, running: list[str], small_rootfs: object
) -> None:
    found = up(lab, running, small_rootfs, "one")
    up(lab, running, small_rootfs, "two")
    address = str(found["addresses"][0]).partition("/")[0]  # type: ignore[index]
    host = lab["a"]
    until(
        lambda: "hello" in host.ckpt("exec", "two", "nc", "-w", "3", address, "8080", check=False)
    )
    with lab["b"].inside(), socket.create_server((lab["b"].address, 0)) as server:
        port = server.getsockname()[1]
        job = host.popen(["ckpt", "exec", "two", "nc", "-w", "5", lab["b"].address, str(port)])
        server.settimeout(60)
        connection, peer = server.accept()
        connection.close()
        assert peer[0] == host.address  # translated to its host's
        job.wait(60)


def test_l2_has_the_address_that_was_given(
    lab: Lab, running: list[str], small_rootfs: object
) -> None:
    prefix, last = lab["a"].address.rsplit(".", 1)
    address = f"{prefix}.{200 + int(last)}"
    bridge = next(name for _, name in _links(lab["a"]) if name.startswith("br"))
    up(lab, running, small_rootfs, "c", "--network", f"l2={bridge},ip={address}/24")
    until(lambda: said_to(lab["b"], address, 8080) == "hello\n")


def _links(host: Host) -> list[tuple[int, str]]:
    with host.inside():
        return socket.if_nameindex()


def test_name_servers_and_names(lab: Lab, running: list[str], small_rootfs: object) -> None:
    up(
        lab,
        running,
        small_rootfs,
        "c",
        "--dns",
        "192.0.2.1",
        "--network",
        "bridge,host=db=10.9.8.7",
    )
    files = lab["a"].ckpt("exec", "c", "cat", "/etc/resolv.conf", "/etc/hosts")
    assert "nameserver 192.0.2.1" in files and "10.9.8.7\tdb" in files and "\tc\n" in files


def test_a_published_port_can_be_had_once(
    lab: Lab, running: list[str], small_rootfs: object
) -> None:
    up(lab, running, small_rootfs, "one", "-p", "18081:80")
    done = lab["a"].run(
        ["ckpt", "run", "-d", "--name", "two", "-p", "18081:80", str(small_rootfs), "--", "true"],
        check=False,
    )
    assert done.returncode == 11 and "18081" in done.stderr
    assert "two" not in lab["a"].ckpt("ps", "-aq").split()
