"""The monitors' cgroup comes with the first and is taken away on request, unless somebody is in it."""

from __future__ import annotations

import os
from pathlib import Path

from runtime import cgroups
from runtime.cgroups.fake import FakeV2
from runtime.cgroups.layout import Layout, Tree


def test_it_goes_with_its_parent_but_not_while_it_is_used(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    layout = Layout("v2", (Tree(2, str(root), frozenset()),), fs=FakeV2(str(root)))

    procs = cgroups.monitors(layout)
    assert procs == cgroups.monitors(layout)
    folder = os.path.dirname(procs)
    container = f"{os.path.dirname(folder)}/c1"

    layout.fs.mkdir(f"{folder}/used")
    cgroups.remove_monitors(layout)
    assert os.path.isdir(folder)

    layout.fs.rmdir(f"{folder}/used")
    layout.fs.mkdir(container)
    cgroups.remove_monitors(layout)
    assert not os.path.isdir(folder) and os.path.isdir(container)

    layout.fs.rmdir(container)
    cgroups.remove_monitors(layout)
    assert not os.path.isdir(os.path.dirname(container))
    cgroups.remove_monitors(layout)


def test_what_ckpt_did_not_make_stays(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    layout = Layout("v2", (Tree(2, str(root), frozenset()),), fs=FakeV2(str(root)))
    layout.fs.mkdir(str(root) + layout.default_parent)
    cgroups.remove_monitors(layout)
    assert os.path.isdir(str(root) + layout.default_parent)
