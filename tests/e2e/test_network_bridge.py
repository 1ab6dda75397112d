"""`--network bridge`: NAT, published ports, isolation, and what crashes leave, in real namespaces.

The world: `host` is connected to `peer`, which stands for the rest of the Internet.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.errors import BadInput, Conflict, Unsupported, WrongState
from runtime.network import host as network
from runtime.network import ipam, plan
from runtime.network.config import NetworkConfig, parse_publish
from runtime.network.plug import inside
from tests import needs
from tests.e2e import network_world as world
from tests.e2e.network_world import Container, Host, who_am_i

pytestmark = [needs.root, needs.userns, needs.netns, needs.bridge, needs.veth, needs.nftables]

BRIDGE = NetworkConfig(kind="bridge")
HOST4, PEER4 = "192.0.2.1", "192.0.2.2"
HOST6, PEER6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def hosts(ckpt_root: Path) -> Iterator[list[Host]]:
    with world.hosts(ckpt_root, "host", "peer") as made:
        host, peer = made
        world.cable(host, "up0", peer, "up0")
        world.address(host, "up0", f"{HOST4}/24", f"{HOST6}/64")
        world.address(peer, "up0", f"{PEER4}/24", f"{PEER6}/64")
        yield made


@pytest.fixture
def host(hosts: list[Host]) -> Host:
    return hosts[0]


@pytest.fixture
def peer(hosts: list[Host]) -> Host:
    return hosts[1]


@pytest.fixture
def one() -> Iterator[Container]:
    with world.containers("one") as (container,):
        yield container


@pytest.fixture
def two() -> Iterator[Container]:
    with world.containers("two") as (container,):
        yield container


def publishing(*texts: str) -> NetworkConfig:
    ports = tuple(port for text in texts for port in parse_publish(text))
    return BRIDGE.replace(ports=ports)


def ips(config: NetworkConfig) -> list[str]:
    return [address.partition("/")[0] for address in config.addresses]


def test_a_container_reaches_the_world_as_its_host(host: Host, peer: Host, one: Container) -> None:
    host.plugged(one, BRIDGE)

    for kind in ("tcp", "udp"):
        with peer.serving(7000, kind=kind):
            assert who_am_i(one, PEER4, 7000, kind) == HOST4
            assert who_am_i(one, PEER6, 7000, kind) == HOST6


def test_published_ports_lead_to_the_container_from_outside(
    host: Host, peer: Host, one: Container
) -> None:
    host.plugged(one, publishing("8080:80", f"{HOST4}:8081:80", f"[{HOST6}]:8082:80", "53:53/udp"))
    with one.serving(80), one.serving(53, kind="udp"):
        assert who_am_i(peer, HOST4, 8080) == PEER4
        assert who_am_i(peer, HOST6, 8080) == PEER6
        assert who_am_i(peer, HOST4, 8081) == PEER4
        assert who_am_i(peer, HOST6, 8081).startswith("error")
        assert who_am_i(peer, HOST6, 8082) == PEER6
        assert who_am_i(peer, HOST4, 8082).startswith("error")
        assert who_am_i(peer, HOST4, 53, "udp") == PEER4
        assert who_am_i(peer, HOST4, 80).startswith("error")


def test_published_ports_lead_to_the_container_from_the_host_and_its_loopback(
    host: Host, one: Container
) -> None:
    host.plugged(one, publishing("8080:80"))
    with one.serving(80):
        assert not who_am_i(host, HOST4, 8080).startswith("error")
        assert not who_am_i(host, HOST6, 8080).startswith("error")
        assert not who_am_i(host, "127.0.0.1", 8080).startswith("error")


def test_ipv6_loopback_is_refused_at_once_and_by_name(host: Host, one: Container) -> None:
    host.plugged(one, publishing("8080:80"))
    with one.serving(80):
        assert who_am_i(host, "::1", 8080) == "error: Connection refused"
    config = publishing("[::1]:8081:80")
    config = host.on(plan.resolve, config, root_dir=host.root, container_id="two")
    with pytest.raises(Unsupported, match=r"127\.0\.0\.1:8081:80 works"):
        host.on(network.prepare, config, "two", root_dir=host.root)


def test_a_port_published_on_loopback_is_closed_to_the_world(
    host: Host, peer: Host, one: Container
) -> None:
    host.plugged(one, publishing("127.0.0.1:8080:80"))
    with one.serving(80):
        assert not who_am_i(host, "127.0.0.1", 8080).startswith("error")
        assert who_am_i(peer, HOST4, 8080).startswith("error")


def test_containers_reach_each_other_directly_and_through_published_ports(
    host: Host, one: Container, two: Container
) -> None:
    first, _ = host.plugged(one, publishing("8080:80"))
    second, _ = host.plugged(two, BRIDGE)
    with one.serving(80):
        for mine, theirs in zip(ips(first), ips(second), strict=True):
            assert who_am_i(two, mine, 80) == theirs
        for place in (one, two):
            assert not who_am_i(place, HOST4, 8080).startswith("error")


def test_the_world_cannot_route_into_the_bridge(host: Host, peer: Host, one: Container) -> None:
    config, _ = host.plugged(one, BRIDGE)
    world.ip("-n", peer.name, "route", "add", "10.88.0.0/16", "via", HOST4)
    with one.serving(80):
        assert not who_am_i(host, ips(config)[0], 80).startswith("error")
        assert who_am_i(peer, ips(config)[0], 80).startswith("error")


def test_two_bridges_of_one_host_are_isolated(
    host: Host, one: Container, two: Container, ckpt_root: Path
) -> None:
    config, _ = host.plugged(one, BRIDGE)
    other = ckpt_root / "other"
    resolved = host.on(plan.resolve, BRIDGE, root_dir=other, container_id="two")
    assert resolved.bridge != config.bridge
    assert resolved.addresses[0].split(".")[:2] != config.addresses[0].split(".")[:2]
    prepared = host.on(network.prepare, resolved, "two", root_dir=other)
    host.on(network.plug, prepared, two.pid)
    host.on(network.attach, prepared)
    with one.serving(80):
        assert who_am_i(two, ips(config)[0], 80).startswith("error")


def test_a_container_cannot_reach_services_on_the_hosts_loopback(
    host: Host, one: Container
) -> None:
    config, _ = host.plugged(one, publishing("8080:80"))
    one.sh("sysctl", "-w", "net.ipv4.conf.eth0.route_localnet=1")
    one.sh("ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
    gateway = config.gateways[0]
    one.sh("ip", "route", "add", "127.0.0.1", "via", gateway, "src", ips(config)[0])
    with host.serving(6000, "127.0.0.1"):
        assert not who_am_i(host, "127.0.0.1", 6000).startswith("error")
        assert who_am_i(one, "127.0.0.1", 6000).startswith("error")


def test_until_attached_nobody_hears_the_container_and_after_detach_neither(
    host: Host, one: Container
) -> None:
    config, prepared = host.plugged(one, BRIDGE, attach=False)
    container = ips(config)[0]
    with one.serving(80):
        assert who_am_i(host, container, 80).startswith("error")
        assert who_am_i(one, config.gateways[0], 80).startswith("error")
        host.on(network.attach, prepared)
        assert who_am_i(host, container, 80) == config.gateways[0]
        host.on(network.detach, prepared)
        assert who_am_i(host, container, 80).startswith("error")
        host.on(network.attach, prepared)
        assert who_am_i(host, container, 80) == config.gateways[0]


def test_an_established_connection_survives_detach_and_attach(host: Host, one: Container) -> None:
    config, prepared = host.plugged(one, BRIDGE)
    code = f"""
import socket, sys, subprocess
s = socket.create_connection(({config.gateways[0]!r}, 7001), timeout=20)
print(s.recv(10).decode(), flush=True)
sys.stdin.readline()
s.sendall(b"after")
print(s.recv(10).decode(), flush=True)
"""
    server = host.on(_listener, config.gateways[0], 7001)
    client = subprocess.Popen(
        one.argv(sys.executable, "-c", code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert client.stdout is not None
        assert client.stdin is not None
        connection, _ = server.accept()
        with server, connection:
            connection.settimeout(20)
            connection.sendall(b"before")
            assert client.stdout.readline() == b"before\n"
            host.on(network.detach, prepared)
            client.stdin.write(b"\n")
            client.stdin.flush()
            host.on(network.attach, prepared)
            assert connection.recv(10) == b"after"
            connection.sendall(b"end")
            assert client.stdout.readline() == b"end\n"
    finally:
        client.kill()
        client.communicate()


def _listener(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port))


def test_inside_there_is_what_the_description_says(host: Host, one: Container) -> None:
    config, prepared = host.plugged(one, BRIDGE.replace(mtu=1400))
    links = json.loads(one.sh("ip", "-j", "address"))
    assert [link["ifname"] for link in links] == ["lo", "eth0"]
    eth0 = links[1]
    assert (eth0["address"], eth0["mtu"]) == (config.mac, 1400)
    assert eth0["ifindex"] == 64
    found = {f"{a['local']}/{a['prefixlen']}": a for a in eth0["addr_info"]}
    assert set(config.addresses) <= set(found)
    assert not any(a.get("tentative") for a in found.values())
    routes = [one.sh("ip", family, "route", "show", "default") for family in ("-4", "-6")]
    for route, gateway in zip(routes, config.gateways, strict=True):
        assert f"via {gateway} dev eth0" in route
    assert who_am_i(one, "127.0.0.1", 1) == "error: Connection refused"  # lo is up
    assert one.sh("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0"
    state = host.on(network.state, config, "one", root_dir=host.root)
    assert state["attached"] is True
    assert state["host_interface"] == prepared.host_end


def test_the_specs_sysctls_are_set_in_the_container_only(host: Host, one: Container) -> None:
    resolved = host.on(plan.resolve, BRIDGE, root_dir=host.root, container_id="one")
    prepared = host.on(network.prepare, resolved, "one", root_dir=host.root)
    wanted = {
        "net.ipv4.ip_unprivileged_port_start": "81",
        "net.ipv4.conf.eth0.arp_notify": "1",
        "net/ipv4/tcp_fin_timeout": "7",
    }
    host.on(network.plug, prepared, one.pid, wanted)
    for name, value in wanted.items():
        path = "/proc/sys/" + name.replace(".", "/")
        assert one.sh("cat", path) == value
    assert host.sh("cat", "/proc/sys/net/ipv4/tcp_fin_timeout") != "7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.nonsense", "1"),
        ("net.ipv4.tcp_fin_timeout", "many"),
        ("kernel.hostname", "x"),
        ("net.ipv4.../../../kernel/hostname", "x"),
    ],
)
def test_a_wrong_sysctl_is_refused_by_name(
    host: Host, one: Container, name: str, value: str
) -> None:
    prepared = host.on(network.prepare, NetworkConfig(), "one", root_dir=host.root)
    with pytest.raises(BadInput, match="sysctl"):
        host.on(network.plug, prepared, one.pid, {name: value})


def test_plugging_in_a_process_of_the_host_is_refused(host: Host) -> None:
    prepared = host.on(network.prepare, NetworkConfig(), "one", root_dir=host.root)
    process = host.on(subprocess.Popen, ["sleep", "60"])
    try:
        with pytest.raises(WrongState, match="no network namespace of its own"):
            host.on(network.plug, prepared, process.pid)
    finally:
        process.kill()
        process.wait()


def test_network_none_has_loopback_only(host: Host, one: Container) -> None:
    before = set(host.links())
    host.plugged(one, NetworkConfig(kind="none"))
    assert one.sh("ip", "-br", "link").split()[0] == "lo"
    assert "127.0.0.1/8" in one.sh("ip", "-br", "address")
    assert set(host.links()) == before


def test_a_port_that_another_container_publishes_is_refused_before_anything_is_made(
    host: Host, one: Container, two: Container
) -> None:
    host.plugged(one, publishing("8080:80"))
    before = host.links().keys(), host.sh("nft", "list", "ruleset")
    resolved = host.on(
        plan.resolve, publishing("127.0.0.1:8080:81"), root_dir=host.root, container_id="two"
    )
    with pytest.raises(Conflict, match="container one publishes it already"):
        host.on(network.prepare, resolved, "two", root_dir=host.root)
    assert (host.links().keys(), host.sh("nft", "list", "ruleset")) == before
    other = resolved.replace(ports=tuple(parse_publish("8081:81")))
    host.on(network.prepare, other, "two", root_dir=host.root)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::", HOST4])
def test_a_port_on_which_a_process_of_the_host_listens_is_refused(host: Host, address: str) -> None:
    with host.on(_listener, address, 8080) if ":" not in address else host.on(_listener6, 8080):
        config = host.on(
            plan.resolve, publishing("8080:80"), root_dir=host.root, container_id="one"
        )
        with pytest.raises(Conflict, match="a process of the host listens there"):
            host.on(network.prepare, config, "one", root_dir=host.root)
        assert not any(name.startswith("ckpt") for name in host.links())
    host.on(network.prepare, config, "one", root_dir=host.root)


def _listener6(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6)


def test_an_address_the_host_does_not_have_is_refused(host: Host) -> None:
    config = publishing("192.0.2.99:8080:80")
    config = host.on(plan.resolve, config, root_dir=host.root, container_id="one")
    with pytest.raises(Conflict, match="the host doesn't have that address"):
        host.on(network.prepare, config, "one", root_dir=host.root)


def test_every_step_may_be_repeated(host: Host, peer: Host, one: Container) -> None:
    config, prepared = host.plugged(one, publishing("8080:80"))
    links, rules = host.links().keys(), host.sh("nft", "list", "ruleset")
    for _ in range(2):
        assert host.on(plan.resolve, config, root_dir=host.root, container_id="one") == config
        host.on(network.plug, prepared, one.pid)
        host.on(network.attach, prepared)
    assert host.links().keys() == links
    assert host.sh("nft", "list", "ruleset") == rules
    with one.serving(80):
        assert who_am_i(peer, HOST4, 8080) == PEER4
    for _ in range(2):
        host.on(network.detach, prepared)
    for _ in range(2):
        host.destroy(one, config)
    host.on(network.detach, prepared)


def test_after_the_last_container_nothing_is_left(
    host: Host, one: Container, two: Container
) -> None:
    host.sh("nft", "add", "table", "inet", "somebody")
    before = host.links().keys(), host.sh("nft", "list", "ruleset")
    first, _ = host.plugged(one, publishing("8080:80"))
    second, _ = host.plugged(two, publishing("8081:80"))
    assert first.bridge in host.links()
    host.destroy(one, first)
    assert first.bridge in host.links()
    assert "8081" in host.sh("nft", "list", "ruleset")
    assert "8080" not in host.sh("nft", "list", "ruleset")
    host.destroy(two, second)
    assert (host.links().keys(), host.sh("nft", "list", "ruleset")) == before
    assert not list((host.root / "network" / "leases").iterdir())


def test_an_address_can_be_kept_while_the_container_is_stopped(
    host: Host, one: Container, two: Container
) -> None:
    config, _ = host.plugged(one, publishing("8080:80"))
    host.on(network.destroy, config, "one", root_dir=host.root, keep_addresses=True)
    thief = config.replace(ports=())
    with pytest.raises(Conflict, match="container one has it"):
        host.on(plan.resolve, thief, root_dir=host.root, container_id="two")
    host.plugged(two, publishing("8080:80"))  # the port is free meanwhile
    assert host.on(plan.resolve, config, root_dir=host.root, container_id="one") == config


def test_a_container_that_comes_back_gets_its_address_and_nobody_elses(
    host: Host, one: Container, two: Container
) -> None:
    config, _ = host.plugged(one, BRIDGE)
    host.destroy(one, config)
    with world.containers("one") as (again,):
        assert host.plugged(again, config)[0].addresses == config.addresses
        reasons = host.on(plan.conflicts, config, root_dir=host.root, container_id="two")
        assert "container one has it" in reasons[0]
        with pytest.raises(Conflict, match="container one has it"):
            host.on(plan.resolve, config, root_dir=host.root, container_id="two")
        renewed = config.renewed()
        assert host.plugged(two, renewed)[0].addresses != config.addresses


def test_what_a_crash_left_is_cleared_by_preparing_again(host: Host, one: Container) -> None:
    config, prepared = host.plugged(one, publishing("8080:80"))
    # The container dies and the host's memory of it with it: bridge, cable and table stay.
    with world.containers("one") as (again,):
        host.on(network.plug, prepared, again.pid)  # the old cable is still there
        host.on(network.attach, prepared)
        with again.serving(80):
            assert who_am_i(host, ips(config)[0], 80) == config.gateways[0]
    with world.containers("one") as (again,):
        host.plugged(again, config)
        with again.serving(80):
            assert not who_am_i(host, HOST4, 8080).startswith("error")


def test_after_a_reboot_everything_is_made_anew(host: Host, one: Container) -> None:
    config, _ = host.plugged(one, publishing("8080:80"))
    host.sh("ip", "link", "delete", config.bridge)
    host.sh("nft", "flush", "ruleset")
    with world.containers("one") as (again,):
        host.plugged(again, config)
        with again.serving(80):
            assert not who_am_i(host, HOST4, 8080).startswith("error")


def test_the_sweep_takes_what_no_container_holds(
    host: Host, one: Container, two: Container
) -> None:
    host.plugged(one, publishing("8080:80"))
    config, _ = host.plugged(two, BRIDGE)
    assert host.on(network.sweep, ["two"], root_dir=host.root) == ["one"]
    assert "8080" not in host.sh("nft", "list", "ruleset")
    assert who_am_i(two, config.gateways[0], 9) == "error: Connection refused"
    assert host.on(network.sweep, [], root_dir=host.root) == ["two"]
    assert config.bridge not in host.links()
    assert host.on(network.sweep, [], root_dir=host.root) == []


def test_a_subnet_that_the_host_uses_is_not_taken(host: Host) -> None:
    world.ip("-n", host.name, "route", "add", "10.88.3.0/24", "dev", "up0")
    config = host.on(plan.resolve, BRIDGE, root_dir=host.root, container_id="one")
    assert config.addresses[0].startswith("10.89.")


def test_a_route_that_came_later_is_named(host: Host) -> None:
    config = host.on(plan.resolve, BRIDGE, root_dir=host.root, container_id="one")
    world.ip("-n", host.name, "route", "add", "10.88.3.0/24", "dev", "up0")
    with pytest.raises(Conflict, match=r"10\.88\.3\.0/24"):
        host.on(network.prepare, config, "one", root_dir=host.root)


def test_a_foreign_interface_with_the_bridges_name_is_not_touched(host: Host) -> None:
    config = host.on(plan.resolve, BRIDGE, root_dir=host.root, container_id="one")
    world.ip("-n", host.name, "link", "add", config.bridge, "type", "bridge")
    with pytest.raises(Conflict, match="not ckpt's"):
        host.on(network.prepare, config, "one", root_dir=host.root)
    host.on(network.destroy, config, "one", root_dir=host.root)
    assert config.bridge in host.links()


def test_forwarding_keeps_the_default_route_of_router_advertisements(
    host: Host, one: Container
) -> None:
    assert host.sh("cat", "/proc/sys/net/ipv6/conf/up0/accept_ra") == "1"
    host.plugged(one, BRIDGE)
    assert host.sh("cat", "/proc/sys/net/ipv6/conf/all/forwarding") == "1"
    assert host.sh("cat", "/proc/sys/net/ipv6/conf/up0/accept_ra") == "2"


def test_many_containers_at_once_get_addresses_of_their_own(host: Host) -> None:
    def resolve(number: int) -> str:
        with open(f"/run/netns/{host.name}") as file, inside(file.fileno()):
            identity = f"c{number}"
            config = plan.resolve(BRIDGE, root_dir=host.root, container_id=identity)
            return config.addresses[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(resolve, range(40)))
    assert len(set(found)) == 40
    with ipam.locked(host.root) as leases:
        assert len(leases.all()) == 40


def test_plugging_in_and_attaching_start_no_program_and_no_thread(
    host: Host, one: Container
) -> None:
    resolved = host.on(plan.resolve, BRIDGE, root_dir=host.root, container_id="one")
    prepared = host.on(network.prepare, resolved, "one", root_dir=host.root)
    events: set[str] = set()
    recording = True
    sys.addaudithook(lambda event, _: events.add(event) if recording else None)
    threads = threading.active_count()
    start = time.perf_counter()
    host.on(network.plug, prepared, one.pid)
    plugged = time.perf_counter()
    host.on(network.attach, prepared)
    attached = time.perf_counter()
    recording = False  # a hook stays for good
    assert "socket.__new__" in events  # it works
    assert not events & {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec"}
    assert threading.active_count() == threads
    # For people (pytest -s); a limit would only measure the machine's neighbours.
    print(f"plug {(plugged - start) * 1000:.2f} ms, attach {(attached - plugged) * 1000:.2f} ms")
