"""`--network l2`: a container on a segment that hosts share, and the way of its address.

The world: hosts `a` and `b` and a client `c`, each with a port of the switch; a and b have a bridge
`br0` with that port in it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.errors import Conflict, NotFound
from runtime.network import announce, host, links, plan
from runtime.network.config import NetworkConfig, parse_network
from runtime.network.plug import Prepared
from tests import needs
from tests.e2e import network_world as world
from tests.e2e.network_world import Host, who_am_i
from tests.patience import patient

pytestmark = [needs.root, needs.userns, needs.netns, needs.bridge, needs.veth]

V4, V6 = "10.9.0.5", "fd09::5"
L2 = parse_network(f"l2=br0,ip={V4}/24,ip={V6}/64")
C4, C6 = "10.9.0.3", "fd09::3"


@dataclass
class Segment:
    a: Host
    b: Host
    c: Host
    switch: Host


@pytest.fixture
def segment(ckpt_root: Path) -> Iterator[Segment]:
    with world.hosts(ckpt_root, "switch", "a", "b", "c") as (switch, a, b, c):
        world.ip("-n", switch.name, "link", "add", "sw0", "up", "type", "bridge")
        for place in (a, b, c):
            port = f"port-{place.root.name}"
            world.cable(switch, port, place, "up0")
            world.ip("-n", switch.name, "link", "set", port, "master", "sw0")
        for place in (a, b):
            world.ip("-n", place.name, "link", "add", "br0", "up", "type", "bridge")
            world.ip("-n", place.name, "link", "set", "up0", "master", "br0")
        world.address(c, "up0", f"{C4}/24", f"{C6}/64")
        yield Segment(a, b, c, switch)


def neighbour(place: Host, address: str) -> str:
    """The MAC that PLACE has in its cache for ADDRESS."""
    for entry in json.loads(place.sh("ip", "-j", "neigh", "show", address)):
        return str(entry.get("lladdr", ""))
    return ""


def switch_port(segment: Segment, mac: str) -> str:
    """The port behind which the switch believes MAC."""
    shown = json.loads(segment.switch.sh("bridge", "-j", "fdb", "show", "br", "sw0"))
    return next((e["ifname"] for e in shown if e["mac"] == mac and e["state"] != "permanent"), "")


def eventually(condition: object, seconds: float = 2.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + patient(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def prepare(place: Host, config: NetworkConfig, identity: str = "web") -> Prepared:
    resolved = place.on(plan.resolve, config, root_dir=place.root, container_id=identity)
    return place.on(host.prepare, resolved, identity, root_dir=place.root)


def test_a_container_is_on_the_segment_with_its_own_address(segment: Segment) -> None:
    with world.containers("web") as (web,):
        prepared = prepare(segment.a, L2)
        segment.a.on(host.plug, prepared, web.pid)
        segment.a.on(host.attach, prepared)
        with web.serving(80):
            assert who_am_i(segment.c, V4, 80) == C4
            assert who_am_i(segment.c, V6, 80) == C6
        segment.a.on(host.detach, prepared)


def test_an_address_moves_and_its_neighbours_learn_it_at_once(segment: Segment) -> None:
    """Both caches are out of date after the move: the client's, as the MAC changed here as well,
    and the switch's. Nothing but the announcement corrects them: the container sends nothing."""
    with world.containers("web", "web") as (source, destination):
        there = prepare(segment.a, L2)
        segment.a.on(host.plug, there, source.pid)
        segment.a.on(host.attach, there)
        with source.serving(80):
            assert who_am_i(segment.c, V4, 80) == C4
            assert who_am_i(segment.c, V6, 80) == C6
        assert neighbour(segment.c, V4) == neighbour(segment.c, V6) == there.mac
        assert switch_port(segment, there.mac) == "port-a"

        here = prepare(segment.b, L2.replace(mac="02:00:00:00:00:99"))
        segment.b.on(host.plug, here, destination.pid)
        segment.a.on(host.detach, there)
        segment.b.on(host.attach, here)
        assert neighbour(segment.c, V4) == there.mac
        segment.b.on(host.announce, here, destination.pid)
        assert eventually(lambda: neighbour(segment.c, V4) == here.mac)
        assert eventually(lambda: neighbour(segment.c, V6) == here.mac)
        assert eventually(lambda: switch_port(segment, here.mac) == "port-b")
        with destination.serving(80):
            assert who_am_i(segment.c, V4, 80) == C4
            assert who_am_i(segment.c, V6, 80) == C6


def test_with_the_same_mac_the_switch_learns_the_new_port(segment: Segment) -> None:
    with world.containers("web", "web") as (source, destination):
        there = prepare(segment.a, L2)
        segment.a.on(host.plug, there, source.pid)
        segment.a.on(host.attach, there)
        segment.a.on(host.announce, there, source.pid)
        assert eventually(lambda: switch_port(segment, there.mac) == "port-a")
        here = prepare(segment.b, L2)
        assert here.mac == there.mac
        segment.b.on(host.plug, here, destination.pid)
        segment.a.on(host.detach, there)
        segment.b.on(host.attach, here)
        with announce.Announcer(here, destination.pid) as announcer:  # for callers with a clock
            segment.b.on(announcer.send)
        assert eventually(lambda: switch_port(segment, here.mac) == "port-b")


def test_the_announcement_is_repeated_without_keeping_its_caller(segment: Segment) -> None:
    with world.containers("web") as (web,):
        prepared = prepare(segment.a, L2)
        segment.a.on(host.plug, prepared, web.pid)
        listener = segment.c.on(_listener)
        with listener:
            segment.a.on(host.attach, prepared)
            segment.a.on(host.announce, prepared, web.pid)
            expected = announce.frames(prepared.mac, [V4, V6])
            counts = dict.fromkeys(expected, 0)
            while any(count < len(announce.TIMES) for count in counts.values()):
                frame = listener.recv(2000)
                if frame in counts:
                    counts[frame] += 1


def _listener() -> socket.socket:
    every_protocol = 0x0003
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
    listener.bind(("up0", every_protocol))
    listener.settimeout(5)
    return listener


def test_an_announcement_for_a_container_that_has_gone_is_only_logged(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    with world.containers("web") as (web,):
        prepared = prepare(segment.a, L2)
        pid = web.pid
    segment.a.on(host.announce, prepared, pid)
    assert "could not announce the addresses of web" in caplog.text


def test_before_attach_the_container_stays_silent_to_the_segment(segment: Segment) -> None:
    """An answer here would be the RST that ends a live connection in the middle of a restore."""
    with world.containers("web") as (web,):
        prepared = prepare(segment.a, L2)
        segment.a.on(host.plug, prepared, web.pid)
        assert who_am_i(segment.c, V4, 80) in ("error: No route to host", "error: timed out")
        segment.a.on(host.attach, prepared)
        # The client's kernel may still be at its last question for the MAC, which nobody has answered.
        refused = "error: Connection refused"
        assert eventually(lambda: who_am_i(segment.c, V4, 80) == refused, seconds=20)


def test_the_shared_bridge_keeps_its_address_and_outlives_its_containers(segment: Segment) -> None:
    before = segment.a.links()["br0"]["address"]
    with world.containers("web") as (web,):
        config = L2.replace(mac="02:00:00:00:00:01")
        resolved, _ = segment.a.plugged(web, config)
        assert segment.a.links()["br0"]["address"] == before
        segment.a.destroy(web, resolved)
    assert "br0" in segment.a.links()
    assert "up0" in segment.a.links()


def test_an_address_of_another_container_is_refused(segment: Segment) -> None:
    prepare(segment.a, L2, "first")
    other = L2.replace(mac="02:00:00:00:00:77")
    with pytest.raises(Conflict, match=f"{V4} for second: container first has it"):
        prepare(segment.a, other, "second")
    prepare(segment.b, other, "second")  # each host knows its own containers only


def test_a_bridge_that_is_not_there_is_named(segment: Segment) -> None:
    with pytest.raises(NotFound, match="br7"):
        prepare(segment.a, L2.replace(bridge="br7"))
    with pytest.raises(NotFound, match="it is a veth"):
        prepare(segment.a, L2.replace(bridge="up0"))
    reasons = segment.a.on(
        plan.conflicts, L2.replace(bridge="br7"), root_dir=segment.a.root, container_id="web"
    )
    assert "br7" in reasons[0]


def test_the_mtu_is_the_shared_bridges(segment: Segment) -> None:
    world.ip("-n", segment.a.name, "link", "set", "up0", "mtu", "1400")
    world.ip("-n", segment.a.name, "link", "set", "br0", "mtu", "1400")
    assert prepare(segment.a, L2).mtu == 1400


def test_the_host_end_is_a_dead_end_until_attached(segment: Segment) -> None:
    with world.containers("web") as (web,):
        prepared = prepare(segment.a, L2)
        segment.a.on(host.plug, prepared, web.pid)
        end = segment.a.links()[prepared.host_end]
        assert "NOARP" in end["flags"]
        assert "master" not in end
        assert end["ifalias"] == f"ckpt web of {segment.a.root}"
        assert segment.a.sh("ip", "-br", "address", "show", prepared.host_end).split()[2:] == []
        assert links.mac_bytes(end["address"])[0] == 0xFE
