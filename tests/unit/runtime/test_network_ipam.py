"""Leases: unique, stable, whole at every instant, and released when nobody holds them."""

from __future__ import annotations

import ipaddress
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from runtime.errors import BadInput, Conflict
from runtime.network import ipam
from runtime.network.config import parse_publish

SUBNET = ipaddress.ip_network("10.88.0.0/24")
SUBNET6 = ipaddress.ip_network("fd00::/64")


def allocate(root: Path, identity: str, subnet: ipam.Network = SUBNET) -> ipam.Interface:
    with ipam.locked(root) as leases:
        return leases.allocate("br", subnet, identity)


def test_a_container_gets_the_same_address_again(tmp_path: Path) -> None:
    first = allocate(tmp_path, "one"), allocate(tmp_path, "one", SUBNET6)
    assert (allocate(tmp_path, "one"), allocate(tmp_path, "one", SUBNET6)) == first
    with ipam.locked(tmp_path) as leases:
        leases.release("one")
    assert allocate(tmp_path, "one") == first[0]


def test_all_addresses_but_the_reserved_ones_are_given_once(tmp_path: Path) -> None:
    small = ipaddress.ip_network("10.88.0.0/28")
    found = {allocate(tmp_path, f"c{n}", small).ip for n in range(13)}
    assert found == {small.network_address + n for n in range(2, 15)}
    with pytest.raises(Conflict, match="all 13 addresses"):
        allocate(tmp_path, "one-too-many", small)
    with ipam.locked(tmp_path) as leases:
        leases.release("c5")
    allocate(tmp_path, "one-too-many", small)


def test_a_claim_names_the_holder_and_changes_nothing(tmp_path: Path) -> None:
    address = ipaddress.ip_interface("10.88.0.9/24")
    free = ipaddress.ip_interface("10.88.0.10/24")
    with ipam.locked(tmp_path) as leases:
        leases.claim("br", [address], "02:00:00:00:00:01", "one")
        with pytest.raises(Conflict, match="10.88.0.9 for two: container one has it"):
            leases.claim("br", [free, address], "02:00:00:00:00:02", "two")
        with pytest.raises(Conflict, match="02:00:00:00:00:01 for two"):
            leases.claim("br", [free], "02:00:00:00:00:01", "two")
        assert leases.get("two") is None
        leases.claim("br", [address], "02:00:00:00:00:01", "one")
        leases.claim("another-segment", [address], "02:00:00:00:00:01", "two")


def test_the_sweep_releases_what_belongs_to_nobody(tmp_path: Path) -> None:
    for identity in ("one", "two", "three.json"):
        allocate(tmp_path, identity)
    with ipam.locked(tmp_path) as leases:
        assert leases.sweep(["two"]) == ["one", "three.json"]
        assert [lease.container_id for lease in leases.all()] == ["two"]


def test_a_lease_keeps_its_ports(tmp_path: Path) -> None:
    ports = tuple(parse_publish("127.0.0.1:8080:80") + parse_publish("53:53/udp"))
    lease = ipam.Lease("one", "br", ("10.88.0.9/24",), "02:00:00:00:00:01", ports, True, True)
    with ipam.locked(tmp_path) as leases:
        leases.put(lease)
        assert leases.all() == [lease]


@pytest.mark.parametrize("identity", ["", ".", "..", "a/b", "../x", ".hidden", "a" * 129, "a\0b"])
def test_an_id_cannot_leave_the_directory(tmp_path: Path, identity: str) -> None:
    with ipam.locked(tmp_path) as leases:
        for action in (leases.get, leases.release):
            with pytest.raises(BadInput):
                action(identity)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"bridge": "br"}', json.dumps({
        "bridge": "br", "addresses": ["nonsense"], "mac": "", "ports": [], "active": True,
        "nat": True,
    })],
)  # fmt: skip
def test_a_damaged_lease_stops_nobody(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    allocate(tmp_path, "one")
    (tmp_path / "network/leases/one.json").write_text(content)
    with ipam.locked(tmp_path) as leases:
        assert leases.all() == []
    assert "damaged" in caplog.text
    assert allocate(tmp_path, "one")
    with ipam.locked(tmp_path) as leases:
        assert len(leases.all()) == 1


def _churn(root: Path, number: int) -> None:
    round_number = 0
    while True:
        identity = f"p{number}-{round_number % 5}"
        with ipam.locked(root) as leases:
            leases.allocate("br", SUBNET, identity)
            if round_number % 3 == 0:
                leases.release(f"p{number}-{round_number % 4}")
        round_number += 1


def test_killed_writers_leave_whole_leases_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        workers = [context.Process(target=_churn, args=(tmp_path, n)) for n in range(3)]
        for worker in workers:
            worker.start()
        while not list((tmp_path / "network").glob("leases/p2-*.json")):
            pass
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            worker.close()
        with ipam.locked(tmp_path) as leases:  # nobody holds it
            files = [p for p in (tmp_path / "network/leases").iterdir() if p.suffix == ".json"]
            found = leases.all()
            assert len(found) == len(files), "a lease is unreadable"
            ips = [ip for lease in found for ip in lease.ips()]
            assert len(ips) == len(set(ips))
            leases.sweep([])
            assert not list((tmp_path / "network/leases").iterdir()), attempt


def test_a_write_that_fails_leaves_the_old_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate(tmp_path, "one")
    with ipam.locked(tmp_path) as leases:
        before = leases.all()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Exception, match="No space left on device"):
            leases.allocate("br", SUBNET6, "one")
        monkeypatch.undo()
        assert leases.all() == before
        assert [p.name for p in (tmp_path / "network/leases").iterdir()] == ["one.json"]
