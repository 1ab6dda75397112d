"""Whatever speaks against a move is found before anything is touched: one clear line, a stable exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.migrate.world import World, eventually, refused
from tests.patience import patient

pytestmark = needs.MIGRATION


@pytest.fixture(autouse=True)
def cold(world: World) -> None:
    world.words = ("--mode", "cold")


# ---- the container and the destination


def test_a_container_that_is_not_there(world: World) -> None:
    assert "there is none with that name" in refused(world, 10, container=False)


def test_a_container_that_does_not_run(world: World) -> None:
    world.run("-m", "1", network="none")
    world.a.ckpt("stop", "-t", "0", "w")
    assert "it is stopped, not running" in refused(world, 12, container=False)


def test_a_name_that_is_taken_there(world: World) -> None:
    world.run("-m", "1", network="none")
    world.b.ckpt(
        "run", "-d", "--name", "w", "--network", "none", str(world.rootfs), "--", "/bin/ticker"
    )
    assert "has that name" in refused(world, 13)
    assert world.state(world.b) == "running"


def test_an_address_that_is_taken_there(world: World) -> None:
    world.run()
    network = f"l2=br0,ip={world.lab.container_address()[0]}"
    world.b.ckpt(
        "run", "-d", "--name", "x", "--network", network, str(world.rootfs), "--", "/bin/ticker"
    )
    line = refused(world, 13)
    assert "network: " in line
    assert "10.77.0.100" in line


def test_a_bridge_that_is_not_there(world: World) -> None:
    world.a.run(["ip", "link", "add", "br9", "type", "bridge"])
    try:
        world.run("-m", "1", network="l2=br9,ip=10.99.0.5/24")
        assert "br9" in refused(world, 13)
    finally:
        world.a.ckpt("rm", "-f", "w")
        world.a.run(["ip", "link", "del", "br9"])


def test_a_volume_that_is_not_there(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_text("x")
    world.run("-f", "/data/file", network="none", options=("-v", f"{folder}:/data"))
    away = folder.rename(tmp_path / "away")
    assert f"volume: {folder} does not exist here" in refused(world, 13)
    away.rename(folder)
    world.migrate()
    world.runs_at(world.b)


def test_a_destination_without_criu(world: World) -> None:
    world.run("-m", "1", network="none")
    env = {"CKPT_REMOTE": "env CKPT_CRIU=/nowhere/criu ckpt"}
    assert "CRIU" in refused(world, 13, env=env)


def test_a_destination_whose_criu_is_older(world: World, tmp_path: Path) -> None:
    world.run("-m", "1", network="none")
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho Version: 4.1\n")
    old.chmod(0o755)
    line = refused(world, 13, env={"CKPT_REMOTE": f"env CKPT_CRIU={old} ckpt"})
    assert "there, 4.1 here" in line or "4.1 is older" in line


def test_a_destination_without_disk_space(world: World) -> None:
    world.run("-m", "1", network="none")
    # A root of its own for the agent, on a file system that is too small.
    small = world.scratch / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", small], check=True)
    try:
        env = {"CKPT_REMOTE": f"env CKPT_ROOT={small} ckpt"}
        assert "MiB are free" in refused(world, 13, env=env)
    finally:
        subprocess.run(["umount", small], check=True)


def test_all_findings_are_shown_by_a_dry_run(world: World) -> None:
    world.run()
    network = f"l2=br0,ip={world.lab.container_address()[0]}"
    world.b.ckpt(
        "run", "-d", "--name", "w", "--network", network, str(world.rootfs), "--", "/bin/ticker"
    )
    done = world.migrate("--dry-run", check=False)
    assert done.returncode == 13
    refusals = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(refusals) == 2, done.stdout
    done = world.migrate("--dry-run", "--json", check=False)
    assert done.returncode == 13
    assert json.loads(done.stderr)["error"] == "Refused"


# ---- the way there


def test_a_way_over_a_jump_host(world: World) -> None:
    world.run("-m", "4", network="none")
    config = world.scratch / "config"
    config.write_text(
        "Host far\n    HostName b\n    ProxyJump a\n" + world.lab.login.config.read_text()
    )
    (world.scratch / "hosts").touch()
    address = world.b.address
    config.write_text(
        f"Host far\n    HostName {address}\n    ProxyJump a\n" + world.lab.login.config.read_text()
    )
    done = world.a.run(["ckpt", "migrate", "w", "far"], env={"CKPT_SSH_CONFIG": str(config)})
    assert done.returncode == 0
    world.runs_at(world.b)


# ---- time and people


@pytest.mark.parametrize("point", ["sync", "dump"])
def test_a_deadline_gives_it_up(world: World, point: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    process = world.begin("--timeout", "4", env=world.stop_at(point, "wait"))
    world.reached(point)
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 14, errors
    assert "it was not done in 4 s" in errors
    world.runs_at(world.a, client)
    world.nothing_at(world.b)


@pytest.mark.parametrize(("number", "point"), [(2, "sync"), (2, "dump"), (15, "dump"), (1, "dump")])
def test_a_signal_gives_it_up(world: World, number: int, point: str) -> None:
    world.run("-m", "4")
    client = world.connect()
    process = world.begin(env=world.stop_at(point, "wait"))
    world.reached(point)
    process.send_signal(number)
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 128 + number, errors
    assert "it was interrupted" in errors
    world.runs_at(world.a, client)
    world.nothing_at(world.b)
    eventually("no journal is left", lambda: not any(world.a.root.glob("migrations/*")))


def test_a_signal_after_commit_is_too_late(world: World) -> None:
    world.run("-m", "4")
    client = world.connect()
    process = world.begin(env=world.stop_at("bury", "wait"))
    world.reached("bury")
    process.send_signal(2)
    world.go_on("bury")
    _, errors = process.communicate(timeout=patient(60))
    assert process.returncode == 0, errors
    world.runs_at(world.b, client)
    world.nothing_at(world.a)
