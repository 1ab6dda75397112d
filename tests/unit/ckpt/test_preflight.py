"""What a destination has to say against a container, each reason by name, and all of them at once."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt.ops import places, preflight, processor
from ckpt.ops.host import Host
from runtime.container.record import Container, Record
from runtime.paths import HostPaths
from runtime.quota import project


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with CRIU 4.2.1, a modern processor and 4 GiB of free memory."""
    made = Host(HostPaths.of(str(tmp_path / "here")))
    made.ready()
    made.__dict__["criu"] = SimpleNamespace(version=(4, 2, 1), text="4.2.1")
    monkeypatch.setattr(processor, "cpu_features", lambda: ("avx", "avx2", "sse2"))
    monkeypatch.setattr(preflight, "available_memory", lambda: 4 << 30)
    return made


def facts(**other: Any) -> dict[str, Any]:
    return {
        "name": "web", "container": "0123456789ab", "host": "a", "arch": platform.machine(),
        "kernel": "6.18", "criu": "4.2.1", "cpu_features": ["avx", "sse2"], "layers": {},
        "network": {"kind": "none"}, "memory": 1 << 30, "files": 0, "volumes": [], "binds": [],
        "hooks": [], "user_namespace": False, **other,
    }  # fmt: skip


def found(host: Host, **other: Any) -> list[tuple[str, str]]:
    said = preflight.destination_findings(host, facts(**other))
    return [(one["what"], one["why"]) for one in said]


def test_nothing_speaks_against_a_container_that_fits(host: Host) -> None:
    assert found(host) == []


@pytest.mark.parametrize(
    ("other", "what", "why"),
    [
        ({"arch": "riscv64"}, "processor", "riscv64 there"),
        (
            {"cpu_features": ["sse2", "avx512f", "sha_ni"]},
            "processor",
            "this CPU lacks avx512f, sha_ni",
        ),
        ({"criu": "4.3"}, "CRIU", "4.3 there, 4.2.1 here"),
        ({"memory": 5 << 30}, "memory", "5120 MiB are needed, 4096 MiB are available"),
        ({"files": 1 << 60}, "disk", "of files are coming"),
        ({"hooks": ["/no/such/hook"]}, "hook", "/no/such/hook is no program here"),
        (
            {"binds": [{"source": "/no/such", "directory": True}]},
            "volume",
            "/no/such does not exist here",
        ),
        (
            {"binds": [{"source": "/etc/passwd", "directory": True}]},
            "volume",
            "/etc/passwd is no directory here",
        ),
    ],
)
def test_each_reason_is_named(host: Host, other: dict[str, Any], what: str, why: str) -> None:
    ((said, reason),) = found(host, **other)
    assert said == what
    assert why in reason


@pytest.mark.parametrize(("here", "said"), [("", []), (project.NOT_ENFORCED, ["disk limit"])])
def test_a_limited_disk_wants_a_host_that_can_keep_the_limit(
    host: Host, monkeypatch: pytest.MonkeyPatch, here: str, said: list[str]
) -> None:
    monkeypatch.setattr(project, "problem", lambda _: here)
    assert [what for what, _ in found(host, disk={"limit": 9 << 20, "used": 1 << 20})] == said
    assert found(host, disk=None) == []


def test_all_reasons_are_said_at_once(host: Host) -> None:
    said = found(host, criu="5.0", memory=1 << 40, cpu_features=["avx512f"])
    assert sorted(what for what, _ in said) == ["CRIU", "memory", "processor"]


def test_a_volume_that_a_container_uses_here_is_not_shared_by_accident(host: Host) -> None:
    mount = {
        "type": "bind", "source": str(host.paths.volumes / "data"), "destination": "/d",
        "options": ["ro"],
    }  # fmt: skip
    record = Record(
        id="1" * 12, name="db", created_ns=0, spec={"mounts": [mount]}, layers=[], id_base=0,
        id_size=0, network={"kind": "none"},
    )  # fmt: skip
    Container(host.paths, record).save()
    coming = {"name": "data", "writable": True}
    assert found(host, volumes=[coming]) == [
        ("volume data", "container db uses one of that name there")
    ]
    assert found(host, volumes=[{**coming, "writable": False}]) == []


def test_only_volumes_with_content_are_compared(host: Host) -> None:
    (host.paths.volumes / "empty").mkdir(parents=True)
    (host.paths.volumes / "full").mkdir()
    (host.paths.volumes / "full/f").touch()
    names = [{"name": name, "writable": True} for name in ("empty", "full", "none")]
    assert list(preflight.volumes_here(host, facts(volumes=names))) == ["full"]


# ---- places


def test_the_first_directory_that_is_closed_to_others_is_found() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o711)
        (top / "open/closed/root").mkdir(parents=True, mode=0o700)
        paths = HostPaths.of(str(top / "open/closed/root"))
        assert places.closed_above(paths) is None
        assert places.closed_above(HostPaths.of(str(top / "open/not/yet"))) is None
        (top / "open/closed").chmod(0o770)
        assert places.closed_above(paths) == top / "open/closed"
