"""What a network description and its spellings may be, and what is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BadInput
from runtime.network.config import NetworkConfig, PortMapping, parse_network, parse_publish


@pytest.mark.parametrize("kind", ["none", "host", "bridge"])
def test_the_simple_kinds_are_their_names(kind: str) -> None:
    assert parse_network(kind) == NetworkConfig(kind=kind)


def test_an_l2_network_has_its_bridge_and_addresses() -> None:
    config = parse_network(
        "l2=br0,ip=10.0.0.5/24,ip=fd00::5/64,gw=10.0.0.1,gw=fe80::1,mac=02-00-00-00-00-0A,mtu=1400"
    )
    assert config.bridge == "br0"
    assert config.addresses == ("10.0.0.5/24", "fd00::5/64")
    assert config.gateways == ("10.0.0.1", "fe80::1")
    assert (config.mac, config.mtu) == ("02:00:00:00:00:0a", 1400)


def test_names_are_resolved_as_given() -> None:
    config = parse_network("bridge,dns=9.9.9.9,dns=2620:fe::fe,search=example.org,host=db=10.0.0.9")
    assert config.dns_servers == ("9.9.9.9", "2620:fe::fe")
    assert config.dns_search == ("example.org",)
    assert config.hosts == ("db=10.0.0.9",)


def test_addresses_are_written_in_one_way() -> None:
    config = parse_network("l2=br0,ip=FD00:0:0::5/64")
    assert config.addresses == ("fd00::5/64",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "none of"),
        ("vlan", "none of"),
        ("bridge=br0", "only l2"),
        ("l2", "bridge's name"),
        ("l2=", "bridge's name"),
        ("l2=br0", "needs an address"),
        ("l2=a-name-that-is-too-long,ip=10.0.0.5/24", "1 to 15"),
        ("l2=../x,ip=10.0.0.5/24", "1 to 15"),
        ("l2=br 0,ip=10.0.0.5/24", "1 to 15"),
        ("l2=br0,ip=10.0.0.5", "prefix length is missing"),
        ("l2=br0,ip=10.0.0.5/33", "no IP address with a prefix"),
        ("l2=br0,ip=10.0.0.256/24", "no IP address"),
        ("l2=br0,ip=10.0.0.0/24", "network's own"),
        ("l2=br0,ip=10.0.0.255/24", "broadcast"),
        ("l2=br0,ip=224.0.0.1/24", "no interface can have it"),
        ("l2=br0,ip=127.0.0.2/8", "no interface can have it"),
        ("l2=br0,ip=::/64", "no interface can have it"),
        ("l2=br0,ip=fe80::1%eth0/64", "zone"),
        ("l2=br0,ip=10.0.0.5/24,ip=10.0.0.5/24", "twice"),
        ("l2=br0,ip=10.0.0.5/24,gw=10.0.1.1", "none of the container's networks"),
        ("l2=br0,ip=10.0.0.5/24,gw=10.0.0.1,gw=10.0.0.2", "one per address family"),
        ("l2=br0,ip=10.0.0.5/24,mac=01:00:5e:00:00:01", "not the address of a single"),
        ("l2=br0,ip=10.0.0.5/24,mac=02:00", "six octets"),
        ("l2=br0,ip=10.0.0.5/24,mtu=100", "between 1280"),
        ("l2=br0,ip=10.0.0.5/24,mtu=1500,mtu=1500", "given once"),
        ("l2=br0,ip=10.0.0.5/24,mtu=1e3", "decimal number"),
        ("l2=br0,color=red", "none of the known ones"),
        ("l2=br0,ip", "none of the known ones"),
        ("none,ip=10.0.0.5/24", "network none has none"),
        ("host,mac=02:00:00:00:00:01", "network host has none"),
        ("bridge,dns=dns.example.org", "no IP address"),
        ("bridge,search=-bad-", "no domain name"),
        ("bridge,search=two words", "no domain name"),
        ("bridge,host=db", "NAME=ADDRESS"),
        ("bridge,host=a\nb=10.0.0.1", "NAME=ADDRESS"),
    ],
)
def test_a_wrong_network_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        parse_network(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080:80", PortMapping("tcp", "", 8080, 80)),
        ("8080:80/tcp", PortMapping("tcp", "", 8080, 80)),
        ("53:53/udp", PortMapping("udp", "", 53, 53)),
        ("127.0.0.1:8080:80", PortMapping("tcp", "127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80", PortMapping("tcp", "0.0.0.0", 8080, 80)),
        ("[::1]:8080:80", PortMapping("tcp", "::1", 8080, 80)),
        ("[2001:DB8::1]:8080:80/udp", PortMapping("udp", "2001:db8::1", 8080, 80)),
    ],
)
def test_a_port_can_be_spelled_with_address_and_protocol(text: str, mapping: PortMapping) -> None:
    assert parse_publish(text) == [mapping]


def test_a_range_is_as_many_ports() -> None:
    found = parse_publish("127.0.0.1:8000-8002:90-92/udp")
    assert [(p.host_port, p.container_port) for p in found] == [(8000, 90), (8001, 91), (8002, 92)]
    assert {(p.host_ip, p.proto) for p in found} == {("127.0.0.1", "udp")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "decimal number|expected"),
        ("80", "host port and container port"),
        ("80:", "decimal number"),
        (":80:80", "address is empty"),
        ("0:80", "1 to 65535"),
        ("80:65536", "1 to 65535"),
        ("8080:80/", "none of tcp, udp"),
        ("8080:80/sctp", "none of tcp, udp"),
        ("localhost:8080:80", "no IP address"),
        ("::1:8080:80", "host port and container port"),
        ("[::1:8080:80", "bracket"),
        ("[127.0.0.1]:8080:80", "brackets are for IPv6"),
        ("[::1]8080:80", "bracket"),
        ("8000-8001:80", "same length"),
        ("8001-8000:80-81", "backwards"),
        ("1-65535:1-65535", "at most"),
        ("8080:80 ", "decimal number"),
        ("+80:80", "decimal number"),
        ("٨٠:80", "decimal number"),
    ],
)
def test_a_wrong_port_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_publish(text)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("80:1", "80:2", True),
        ("80:1", "80:1/udp", False),
        ("80:1", "81:1", False),
        ("127.0.0.1:80:1", "80:1", True),
        ("127.0.0.1:80:1", "0.0.0.0:80:1", True),
        ("127.0.0.1:80:1", "127.0.0.2:80:1", False),
        ("127.0.0.1:80:1", "[::]:80:1", False),
        ("[::1]:80:1", "[::]:80:1", True),
        ("0.0.0.0:80:1", "[::]:80:1", False),
    ],
)
def test_ports_overlap_where_one_socket_would_exclude_the_other(
    one: str, other: str, overlap: bool
) -> None:
    (a,), (b,) = parse_publish(one), parse_publish(other)
    assert a.overlaps(b) is overlap
    assert b.overlaps(a) is overlap


def test_ports_need_the_bridge_and_do_not_collide() -> None:
    ports = tuple(parse_publish("8080:80"))
    for config in (NetworkConfig(), parse_network("l2=br0,ip=10.0.0.5/24")):
        with pytest.raises(BadInput, match="publishes no ports"):
            config.replace(ports=ports)
    with pytest.raises(BadInput, match="twice"):
        NetworkConfig(kind="bridge", ports=(*ports, *parse_publish("127.0.0.1:8080:81")))


def full() -> NetworkConfig:
    config = parse_network("bridge,ip=10.88.0.9/16,gw=10.88.0.1,dns=9.9.9.9,host=db=10.0.0.9")
    return config.replace(ports=tuple(parse_publish("8080:80")), mac="02:00:00:00:00:01", mtu=1400)


def test_a_description_survives_json() -> None:
    for config in (full(), NetworkConfig(), parse_network("l2=br0,ip=fd00::5/64")):
        assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"kind": "vlan"},
        {"kind": 7},
        {"kind": None},
        {"mtu": "1400"},
        {"mtu": True},
        {"mtu": -1},
        {"addresses": "10.88.0.9/16"},
        {"addresses": [1]},
        {"addresses": ["10.88.0.9/16"] * 2},
        {"addresses": [f"10.88.0.{n}/16" for n in range(2, 100)]},
        {"ports": [{}]},
        {"ports": ["8080:80"]},
        {"ports": [{"proto": "tcp", "host_ip": "", "host_port": True, "container_port": 80}]},
        {"ports": [{"proto": "tcp", "host_ip": "", "host_port": 1.5, "container_port": 80}]},
        {"ports": [{"proto": ["tcp"], "host_ip": "", "host_port": 1, "container_port": 80}]},
        {"interface": "lo"},
        {"interface": ""},
        {"interface": "a/b"},
        {"hosts": ["db=10.0.0.9\n10.0.0.1 bank"]},
    ],
)
def test_a_description_from_outside_is_checked_in_every_field(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        NetworkConfig.from_dict({**full().to_dict(), **change})


@pytest.mark.parametrize("raw", [None, [], "bridge", 7, b"bridge"])
def test_what_is_no_mapping_is_refused(raw: object) -> None:
    with pytest.raises(BadInput):
        NetworkConfig.from_dict(raw)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(field=st.sampled_from(sorted(NetworkConfig().to_dict())), value=anything)
def test_no_value_from_outside_does_more_than_be_refused(field: str, value: Any) -> None:
    try:
        config = NetworkConfig.from_dict({**full().to_dict(), field: value})
    except BadInput:
        return
    assert NetworkConfig.from_dict(config.to_dict()) == config


@given(st.text(max_size=40))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for parse in (parse_network, parse_publish):
        try:
            parse(text)
        except BadInput as fault:
            assert "\n" not in str(fault)


def test_another_container_of_the_same_network_gets_what_is_its_own() -> None:
    renewed = full().renewed()
    assert (renewed.mac, renewed.addresses, renewed.gateways) == ("", (), ())
    assert renewed.ports == full().ports
    l2 = parse_network("l2=br0,ip=10.0.0.5/24,mac=02:00:00:00:00:01").renewed()
    assert (l2.mac, l2.addresses) == ("", ("10.0.0.5/24",))
