"""A container that is held is as who had it before left it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ckpt.ops.host import held_container
from runtime.container import record
from runtime.container.record import Container, Record
from runtime.files import locked
from runtime.paths import HostPaths


def test_what_was_changed_while_it_was_waited_for_is_not_overwritten(tmp_path: Path) -> None:
    paths = HostPaths.of(str(tmp_path / "here"))
    paths.make()
    container = Container(
        paths,
        Record(
            id="0123456789ab", name="web", created_ns=0, spec={}, layers=[],
            id_base=0, id_size=0, network={"kind": "none"},
        ),
    )  # fmt: skip
    container.save()
    found = threading.Event()

    def find(name: str) -> Container:
        one = record.find(paths, name)
        found.set()
        return one

    host: Any = SimpleNamespace(find=find)

    def later() -> None:
        with held_container(host, "web") as held:
            held.record.wanted = "stopped"
            held.save()

    with locked(container.paths.lock, what="web"):
        waiting = threading.Thread(target=later)
        waiting.start()
        assert found.wait(10)
        container.record.origin = "changed meanwhile"
        container.save()
    waiting.join(10)
    after = record.find(paths, "web").record
    assert (after.wanted, after.origin) == ("stopped", "changed meanwhile")
