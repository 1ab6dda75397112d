"""What is derived from a description without any system call: rules, frames, name resolution."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest

from runtime.errors import BadInput
from runtime.network import announce, dns, firewall, ipam, links, netlink, plan, plug
from runtime.network.config import NetworkConfig, parse_network, parse_publish

MAC = "02:00:00:00:00:05"


def test_a_host_port_leads_to_the_first_address_of_each_family() -> None:
    addresses = ("10.88.0.9/16", "10.88.0.10/16", "fd00::9/64")
    ports = tuple(parse_publish("8080:80"))
    lease = ipam.Lease("one", "br", addresses, MAC, ports, True, True)
    rules = firewall.ruleset("br", ["10.88.0.0/16"], [lease])
    translations = [
        part["dnat"]
        for command in rules
        if command.get("add", {}).get("rule", {}).get("chain") == "dstnat"
        for part in command["add"]["rule"]["expr"]
        if "dnat" in part
    ]
    assert translations == [
        {"family": "ip", "addr": "10.88.0.9", "port": 80},
        {"family": "ip6", "addr": "fd00::9", "port": 80},
    ]


def test_the_transaction_touches_its_own_table_only() -> None:
    for command in firewall.ruleset("ckpt-br", ["10.88.0.0/16", "fd00::/64"], []):
        ((verb, target),) = command.items()
        ((kind, value),) = target.items()
        assert verb in ("add", "flush")
        assert value["name" if kind == "table" else "table"] == "ckpt_ckpt_br"


def internet_checksum_is_right(data: bytes) -> bool:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def test_gratuitous_arp_says_that_the_address_is_at_the_mac() -> None:
    for frame, operation in zip(announce.frames(MAC, ["10.9.0.5"]), (1, 2), strict=True):
        raw, ip = links.mac_bytes(MAC), bytes([10, 9, 0, 5])
        assert frame[:14] == b"\xff" * 6 + raw + b"\x08\x06"
        assert frame[14:22] == struct.pack("!HHBBH", 1, 0x800, 6, 4, operation)
        assert frame[22:32] == raw + ip  # sender
        assert frame[38:42] == ip  # target
        assert len(frame) == 42


def test_a_neighbour_advertisement_overrides_what_others_remember() -> None:
    advertisement, report = announce.frames(MAC, ["fd09::5"])
    ip = ipaddress.ip_address("fd09::5").packed
    all_nodes = ipaddress.ip_address("ff02::1").packed
    assert advertisement[:14] == b"\x33\x33\x00\x00\x00\x01" + links.mac_bytes(MAC) + b"\x86\xdd"
    header, body = advertisement[14:54], advertisement[54:]
    assert struct.unpack("!IHBB", header[:8]) == (6 << 28, len(body), 58, 255)
    assert header[8:] == ip + all_nodes
    assert body[:2] == b"\x88\0"
    assert body[4:8] == b"\x20\0\0\0"  # override, unsolicited
    assert body[8:24] == ip
    assert body[24:] == b"\x02\x01" + links.mac_bytes(MAC)
    assert internet_checksum_is_right(header[8:] + struct.pack("!II", len(body), 58) + body)

    header, options, body = report[14:54], report[54:62], report[62:]
    assert struct.unpack("!IHBB", header[:8]) == (6 << 28, 8 + len(body), 0, 1)
    assert options == b"\x3a\x00\x05\x02\x00\x00\x01\x00"  # next ICMPv6; router alert: MLD
    assert body[:2] == b"\x8f\0"
    assert body[-16:] == ipaddress.ip_address("ff02::1:ff00:5").packed
    assert internet_checksum_is_right(header[8:] + struct.pack("!II", len(body), 58) + body)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/a.b/rp_filter", "/proc/sys/net/ipv4/conf/a.b/rp_filter"),
        ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
    ],
)
def test_a_sysctl_is_spelled_with_dots_or_slashes(name: str, path: str) -> None:
    assert plug.sysctl_path(name) == path


@pytest.mark.parametrize(
    "name",
    ["", "net", "net.", "net.ipv4", "kernel.hostname", "net/ipv4/../../x", "net..x", "/net/ipv4/x",
     "net.ipv4.a/b", "net/ipv4/./x", "net.ipv4.a\0b"],
)  # fmt: skip
def test_a_sysctl_stays_below_net(name: str) -> None:
    with pytest.raises(BadInput):
        plug.sysctl_path(name)


def test_what_is_prepared_travels_as_a_dict() -> None:
    prepared = plug.Prepared(
        container_id="one", root_dir="/r", kind="l2", bridge="br0", host_end="ckXh", mac=MAC,
        addresses=("10.9.0.5/24",), gateways=("10.9.0.1",), hairpin=True,
    )  # fmt: skip
    assert plug.Prepared.from_dict(prepared.to_dict()).to_dict() == prepared.to_dict()


def test_every_host_finds_the_same_ipv6_subnet_for_the_same_ipv4_one() -> None:
    subnets = [plan.private_v6(subnet) for subnet in plan.candidates()]
    assert len(set(subnets)) == len(subnets)
    assert all(subnet.is_private and subnet.prefixlen == 64 for subnet in subnets)
    assert plan.private_v6(plan.candidates()[0]) == subnets[0]


@pytest.fixture
def resolv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The host's resolv.conf, and the one behind systemd-resolved's stub."""
    files = tmp_path / "resolv.conf", tmp_path / "behind.conf"
    monkeypatch.setattr(dns, "_HOST_FILE", files[0])
    monkeypatch.setattr(dns, "_BEHIND_STUB", files[1])
    return files


def test_given_name_servers_are_used(resolv: tuple[Path, Path]) -> None:
    resolv[0].write_text("nameserver 192.0.2.53\n")
    text = dns.resolv_conf(parse_network("bridge,dns=9.9.9.9,search=example.org"))
    assert text == "search example.org\nnameserver 9.9.9.9\n"


def test_the_hosts_name_servers_are_used_but_not_those_on_its_loopback(
    resolv: tuple[Path, Path],
) -> None:
    resolv[0].write_text(
        "# comment\nnameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n"
        "nameserver\nnameserver nonsense\nsearch a.example b.example\noptions ndots:2\n"
    )
    text = dns.resolv_conf(NetworkConfig(kind="bridge"))
    assert text == "search a.example b.example\nnameserver 192.0.2.53\noptions ndots:2\n"


def test_behind_a_stub_are_the_real_servers(resolv: tuple[Path, Path]) -> None:
    resolv[0].write_text("nameserver 127.0.0.53\n")
    resolv[1].write_text("nameserver 192.0.2.54\n")
    assert dns.resolv_conf(NetworkConfig(kind="bridge")) == "nameserver 192.0.2.54\n"
    resolv[1].unlink()
    assert dns.resolv_conf(NetworkConfig(kind="bridge")).startswith("# No name server")


def test_in_the_hosts_network_its_own_file_is_right(resolv: tuple[Path, Path]) -> None:
    resolv[0].write_text("nameserver 127.0.0.53\n")
    assert dns.resolv_conf(NetworkConfig(kind="host")) == "nameserver 127.0.0.53\n"
    assert "nameserver" not in dns.resolv_conf(NetworkConfig(kind="none"))


def test_the_hosts_file_names_the_container_and_the_given_hosts() -> None:
    config = parse_network("l2=br0,ip=10.0.0.5/24,ip=fd00::5/64,host=db=10.0.0.9")
    lines = dns.hosts_file(config, "web").splitlines()
    assert "127.0.0.1\tlocalhost" in lines
    assert lines[-3:] == ["10.0.0.5\tweb", "fd00::5\tweb", "10.0.0.9\tdb"]
    assert "127.0.1.1\tweb" in dns.hosts_file(NetworkConfig(), "web")


def test_malformed_attributes_end_the_parsing_and_nothing_else() -> None:
    good = netlink.u32(1, 7) + netlink.text(3, "eth0")
    assert netlink.parse_attrs(good) == {1: struct.pack("=I", 7), 3: b"eth0\0"}
    for tail in (b"\0\0\0\0", b"\x03\0\x01\0", b"\xff\xff\x01\0", b"\x01"):
        assert netlink.parse_attrs(good + tail) == netlink.parse_attrs(good)
