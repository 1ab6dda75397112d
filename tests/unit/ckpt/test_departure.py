"""A departure that could not begin: it undoes what it had done, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt.ops import departure
from ckpt.ops.departure import Departure
from runtime.container.record import Container, Record
from runtime.errors import SystemFault, WrongState
from runtime.paths import HostPaths
from runtime.proc import boot_ticks


@pytest.fixture
def container(tmp_path: Path) -> Container:
    paths = HostPaths.of(str(tmp_path / "here"))
    paths.make()
    record = Record(
        id="aa", name="web", created_ns=0, spec={}, layers=[],
        id_base=0, id_size=0, network={"kind": "none"},
    )  # fmt: skip
    return Container(paths, record)


def leaving(container: Container) -> Departure:
    host: Any = SimpleNamespace(paths=container.host)
    return Departure(host, container, reason="moved", leave_running=False)


def test_of_a_container_that_has_ended_there_is_nothing_to_resume(container: Container) -> None:
    with leaving(container) as one:
        with pytest.raises(WrongState, match="not running"):
            one.prepare()
        one.resume()


def test_a_monitor_that_was_told_of_a_dump_hears_that_there_is_none(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getpid()
    container.save()
    container.paths.status.write_text(
        json.dumps({"state": "running", "monitor_pid": pid, "monitor_ticks": boot_ticks(pid)})
    )

    def failing(*_: object) -> None:
        raise SystemFault(doing="looking at", target="files", why="of a test")

    monkeypatch.setattr(departure, "trees_of", failing)
    heard: list[str] = []
    container.paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(container.paths.run / "ctl"))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as client:
                while packet := client.recv(65536):
                    heard.append(json.loads(packet)["op"])
                    client.send(json.dumps({"ok": True}).encode())

        monitor = threading.Thread(target=answer, daemon=True)
        monitor.start()
        with pytest.raises(SystemFault, match="of a test"), leaving(container) as one:
            one.prepare()
        monitor.join(10)
    assert heard == ["quiesce", "resume"]
