"""The way to the other host: each thing that can be wrong with it is one clear line and an exit code of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.ops import dialect
from tests import needs
from tests.e2e.migrate.world import World, opened, refused
from tests.lab import Lab
from transport.messages import PROTOCOL_VERSION

pytestmark = needs.MIGRATION


@pytest.fixture(scope="module")
def resting(
    migration_lab: Lab, ticker_rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A container that nobody manages to move."""
    with opened(migration_lab, ticker_rootfs, tmp_path_factory.mktemp("way")) as made:
        made.run("-m", "1", network="none")
        yield made


def test_a_target_that_makes_no_sense(resting: World, tmp_path: Path) -> None:
    done = resting.a.run(["ckpt", "migrate", "w", "root@:x"], check=False)
    assert done.returncode in (3, 39), done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_host_whose_key_is_unknown(resting: World, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.touch()
    config = tmp_path / "config"
    text = resting.lab.login.config.read_text()
    config.write_text(text.replace(str(resting.lab.login.known_hosts), str(known)))
    env = {"CKPT_SSH_CONFIG": str(config), "CKPT_KNOWN_HOSTS": str(known)}
    assert "checking the host key of" in refused(resting, 30, env=env)


def test_a_host_whose_key_has_changed(resting: World, tmp_path: Path) -> None:
    known = tmp_path / "known"
    a, b = resting.lab.login.known_hosts.read_text().splitlines()
    known.write_text(f"{a}\n{b.split()[0]} {' '.join(a.split()[1:])}\n")
    config = tmp_path / "config"
    text = resting.lab.login.config.read_text()
    config.write_text(text.replace(str(resting.lab.login.known_hosts), str(known)))
    env = {"CKPT_SSH_CONFIG": str(config), "CKPT_KNOWN_HOSTS": str(known)}
    assert "somebody may be listening in" in refused(resting, 31, env=env)


def test_a_host_that_refuses_the_login(resting: World, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = tmp_path / "config"
    text = resting.lab.login.config.read_text()
    config.write_text(text.replace(str(resting.lab.login.client_key), str(key)))
    refused(resting, 32, env={"CKPT_SSH_CONFIG": str(config)})


def test_a_host_that_can_not_be_reached(resting: World, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("ConnectTimeout 2\n" + resting.lab.login.config.read_text())
    resting.lab.link_down("b")
    try:
        refused(resting, 33, env={"CKPT_SSH_CONFIG": str(config)})
    finally:
        resting.lab.link_up("b")


def test_a_host_without_ckpt(resting: World, tmp_path: Path) -> None:
    line = refused(resting, 34, env={"CKPT_REMOTE": "no-such-ckpt"})
    assert "install ckpt there" in line


@pytest.mark.parametrize(
    ("version", "features", "why"),
    [
        (99, [*dialect.FEATURES], "it speaks protocol 99"),
        (PROTOCOL_VERSION, ["cold", "warm", "lazy"], f"it lacks {dialect.CONTENTS}"),
    ],
    ids=["exchange", "contents"],
)
def test_a_host_whose_ckpt_speaks_another_version(
    resting: World, tmp_path: Path, version: int, features: list[str], why: str
) -> None:
    hello = {"type": "hello", "version": version, "features": features, "software": "ckpt 0.1.0"}
    other = tmp_path / "agent"
    other.write_text(
        f"#!{sys.executable}\n"
        "import sys, struct, msgpack\n"
        f"data = msgpack.packb({hello})\n"
        "sys.stdout.buffer.write(struct.pack('>I', len(data)) + data)\n"
        "sys.stdout.buffer.flush()\n"
        "sys.stdin.buffer.read()\n"
    )
    other.chmod(0o755)
    line = refused(resting, 35, env={"CKPT_REMOTE": str(other)})
    assert why in line and "install the same version" in line


def test_a_host_whose_ckpt_says_nonsense(resting: World, tmp_path: Path) -> None:
    other = tmp_path / "agent"
    other.write_text("#!/bin/sh\necho Welcome to this machine, dear user.\ncat > /dev/null\n")
    other.chmod(0o755)
    refused(resting, 38, env={"CKPT_REMOTE": str(other)})
