"""Hosts by name: a key accepted by its fingerprint, ckpt installed over SSH, a container moved there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.e2e.migrate.world import World

pytestmark = [needs.root, needs.criu, needs.netns, needs.tool("ssh-keygen")]


class Stranger:
    """Host a as it is when nobody has ever logged in anywhere from it."""

    def __init__(self, world: World, scratch: Path) -> None:
        self.world = world
        known = scratch / "known"
        known.touch()
        self.env = {"CKPT_KNOWN_HOSTS": str(known)}
        self.target = f"root@{world.b.address}"

    def ckpt(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.world.a.run(["ckpt", *words], check=False, env=self.env, timeout=110)

    def json(self, *words: str) -> Any:
        done = self.ckpt(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def fingerprint(self) -> str:
        """As somebody at b's console reads it."""
        public = self.world.lab.login.directory / "b/host_key.pub"
        shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True)
        return shown.stdout.split()[1]


@pytest.fixture
def stranger(world: World, tmp_path: Path) -> Iterator[Stranger]:
    yield Stranger(world, tmp_path)
    for name in ("hosts.json", "hosts.lock", "known_hosts"):
        (world.a.root / name).unlink(missing_ok=True)


def test_a_host_gets_a_name_by_its_fingerprint_and_a_container_moves_there(
    stranger: Stranger,
) -> None:
    world = stranger.world
    refused = stranger.ckpt("host", "add", "other", stranger.target)
    assert (refused.returncode, refused.stdout) == (30, "")
    wrong = stranger.ckpt("host", "add", "other", stranger.target, "--accept", "SHA256:wrong")
    assert wrong.returncode == 31
    assert stranger.json("host", "ls") == []

    added = stranger.ckpt(
        "host", "add", "other", stranger.target, "--accept", stranger.fingerprint()
    )
    assert added.returncode == 0, added.stderr
    (listed,) = stranger.json("host", "ls")
    assert (listed["name"], listed["target"]) == ("other", stranger.target)
    assert stranger.fingerprint() in listed["keys"][0]

    world.run()
    client = world.connect()
    # OpenSSH's own program has to know the accepted key as well.
    moved = stranger.ckpt("migrate", "w", "other", "--lane", "openssh")
    assert moved.returncode == 0, moved.stderr
    assert client.beat()

    assert stranger.ckpt("host", "rm", "other").returncode == 0
    assert stranger.ckpt("doctor", stranger.target).returncode == 30, "its key is forgotten too"
    assert stranger.ckpt("host", "check", "other").returncode == 33


def test_set_up_installs_what_is_missing_once_and_what_it_installed_works(
    stranger: Stranger, world: World
) -> None:
    prefix = str(world.lab.directory / "elsewhere")
    fingerprint = stranger.fingerprint()
    stranger.ckpt("host", "add", "other", stranger.target, "--accept", fingerprint)
    before = stranger.json("host", "setup", "other", "--prefix", prefix, "--dry-run")
    assert before["code"] and not Path(prefix).exists()

    done = stranger.json("host", "setup", "other", "--prefix", prefix)
    assert done["ok"], done
    (row,) = [row for row in done["rows"] if row["name"] == "ckpt"]
    assert (row["level"], "same as here" in row["value"]) == ("ok", True)
    again = stranger.json("host", "setup", "other", "--prefix", prefix, "--dry-run")
    assert (again["code"], again["criu"], again["packages"]) == (False, False, [])

    world.run()
    client = world.connect()
    moved = stranger.ckpt("migrate", "w", "other")
    assert moved.returncode == 0, moved.stderr
    assert client.beat()
    world.b.ckpt("rm", "-f", "w")

    # Somebody has changed what is there: it is another ckpt now.
    (file,) = Path(prefix).glob("lib/ckpt/venv/lib/python3*/site-packages/ckpt/__init__.py")
    file.write_text(file.read_text() + "# changed\n")
    rows = {row["name"]: row for row in stranger.json("host", "check", "other")["rows"]}
    assert rows["ckpt"]["level"] == "warn"
