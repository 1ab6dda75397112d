"""Named volumes: whose they are, and how they come along: nothing that is here is ever overwritten or lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckpt.ops import volumes
from ckpt.ops.volume_arrival import ArrivingVolumes, to_manifest
from images.manifest import Manifest
from runtime.container.record import Container, Record
from runtime.errors import BadInput, Conflict
from runtime.paths import HostPaths
from runtime.tree.sync import Synchroniser


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    made = HostPaths.of(str(tmp_path / "here"))
    made.make()
    return made


def mount(source: Path | str, point: str, *options: str) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": str(source),
        "destination": point,
        "options": ["rbind", *options],
    }


def container(paths: HostPaths, identity: str, *mounts: dict[str, Any]) -> Container:
    record = Record(
        id=identity, name=f"n{identity}", created_ns=0, spec={"mounts": list(mounts)}, layers=[],
        id_base=0, id_size=0, network={"kind": "none"},
    )  # fmt: skip
    return Container(paths, record)


def manifest(before: Path, *names: str, comes: bool, binds: tuple[dict[str, Any], ...] = ()) -> Any:
    """Of a container of another host, whose volumes are below BEFORE."""
    mounts = [*binds, *(mount(before / name, f"/{name}") for name in names)]
    every = [
        volumes.Volume(name, str(before / name), (f"/{name}",), writable=True) for name in names
    ]
    return Manifest(
        name="one", container_id="aa", container_name="web", created=0, host="", arch="",
        kernel="", criu="", spec={"mounts": mounts},
        container={"volumes": to_manifest(every, carried=comes)},
    )  # fmt: skip


def send(arriving: ArrivingVolumes, name: str, tree: Synchroniser, number: int) -> None:
    with open(tree.directory + f".{number}", "w+b") as file:
        tree.round(file.fileno())
        file.seek(0)
        arriving.apply(name, file.fileno())


# ---- whose they are


def test_a_volume_is_named_once_with_all_its_places(paths: HostPaths) -> None:
    spec = {
        "mounts": [
            mount(paths.volumes / "data", "/a", "ro"),
            mount(paths.volumes / "data", "/b"),
            mount(paths.volumes / "conf", "/c", "ro"),
            mount("/srv", "/d"),
            {"type": "tmpfs", "source": str(paths.volumes / "no"), "destination": "/e"},
        ]
    }
    assert volumes.named(paths, spec) == [
        volumes.Volume("data", str(paths.volumes / "data"), ("/a", "/b"), writable=True),
        volumes.Volume("conf", str(paths.volumes / "conf"), ("/c",), writable=False),
    ]
    assert volumes.binds(paths, spec) == [("/srv", "/d")]


def test_readers_may_share_a_volume_and_a_writer_may_not(paths: HostPaths) -> None:
    reader = container(paths, "1", mount(paths.volumes / "v", "/v", "ro"))
    writer = container(paths, "2", mount(paths.volumes / "v", "/v"))
    assert volumes.sharers([reader], "v", writable=False) == []
    assert volumes.sharers([reader], "v", writable=True) == ["n1"]
    assert volumes.sharers([reader, writer], "v", writable=False) == ["n2"]
    assert volumes.sharers([writer], "v", writable=True, but="2") == []


def test_what_moved_away_goes_unless_others_have_it_or_it_was_only_read(paths: HostPaths) -> None:
    for name in ("mine", "shared", "read"):
        (paths.volumes / name).mkdir(parents=True)
    moved = container(
        paths, "1", mount(paths.volumes / "mine", "/m"), mount(paths.volumes / "shared", "/s"),
        mount(paths.volumes / "read", "/r", "ro"),
    )  # fmt: skip
    other = container(paths, "2", mount(paths.volumes / "shared", "/s", "ro"))
    volumes.moved_away(paths, moved.record, [moved, other])
    assert sorted(os.listdir(paths.volumes)) == ["read", "shared"]


# ---- coming along


def test_it_comes_in_rounds_under_its_own_name_and_is_this_hosts(
    paths: HostPaths, tmp_path: Path
) -> None:
    before = tmp_path / "there"
    (before / "data").mkdir(parents=True)
    (before / "data/f").write_text("one")
    made = container(paths, "1", mount(before / "data", "/data"))
    arriving = ArrivingVolumes(paths, manifest(before, "data", comes=True))
    arriving.place(made.record, [])
    arriving.make(made.record)
    assert made.record.brought == ["data"]
    assert made.record.spec["mounts"][0]["source"] == str(paths.volumes / "data")
    tree = Synchroniser(str(before / "data"))
    send(arriving, "data", tree, 0)
    (before / "data/f").write_text("two")
    (before / "data/g").touch()
    send(arriving, "data", tree, 1)
    arriving.settle()
    assert (paths.volumes / "data/f").read_text() == "two"
    assert sorted(os.listdir(paths.volumes / "data")) == ["f", "g"]
    # It did not come to be: what came with it goes.
    volumes.take_back(paths, made.record, [made])
    assert os.listdir(paths.volumes) == []


@pytest.mark.parametrize("same", [True, False])
def test_what_is_here_already_is_kept_and_must_be_the_same(
    paths: HostPaths, tmp_path: Path, same: bool
) -> None:
    before = tmp_path / "there"
    for place in (before / "data", paths.volumes / "data"):
        place.mkdir(parents=True)
        (place / "f").write_text("same")
        os.utime(place / "f", ns=(1, 1))
        os.utime(place, ns=(2, 2))
    if not same:
        (paths.volumes / "data/f").write_text("ours")
    made = container(paths, "1", mount(before / "data", "/data"))
    arriving = ArrivingVolumes(paths, manifest(before, "data", comes=True))
    arriving.place(made.record, [])
    arriving.make(made.record)
    assert made.record.brought == []
    send(arriving, "data", Synchroniser(str(before / "data")), 0)
    if same:
        arriving.settle()
    else:
        with pytest.raises(Conflict, match="volume data: this host has one of that name"):
            arriving.settle()
    volumes.take_back(paths, made.record, [made])
    assert os.listdir(paths.volumes) == ["data"]
    assert (paths.volumes / "data/f").read_text() == ("same" if same else "ours")


def test_one_that_another_container_uses_is_not_taken_over_even_if_empty(
    paths: HostPaths, tmp_path: Path
) -> None:
    (paths.volumes / "data").mkdir(parents=True)
    other = container(paths, "2", mount(paths.volumes / "data", "/data"))
    made = container(paths, "1", mount(tmp_path / "data", "/data"))
    arriving = ArrivingVolumes(paths, manifest(tmp_path, "data", comes=True))
    arriving.place(made.record, [other])
    assert made.record.brought == []


def test_a_copy_that_a_crash_left_is_swept_with_its_container(paths: HostPaths) -> None:
    for name in (".data.1", ".more.2", "data"):
        (paths.volumes / name).mkdir(parents=True)
    assert volumes.sweep(paths, ["2"]) == ["data"]
    assert sorted(os.listdir(paths.volumes)) == [".more.2", "data"]


# ---- not coming along


def test_what_does_not_come_must_be_here(paths: HostPaths, tmp_path: Path) -> None:
    gone = mount(tmp_path / "gone", "/x")
    arriving = ArrivingVolumes(paths, manifest(tmp_path, "data", comes=False, binds=(gone,)))
    first, second = arriving.problems()
    assert f"{tmp_path}/gone of the host, which is mounted at /x, is not here" in first
    assert "volume data is not here" in second
    (paths.volumes / "data").mkdir(parents=True)
    (tmp_path / "gone").mkdir()
    assert arriving.problems() == []
    assert arriving.notes() == ["volume data is as it is now, not as it was at the dump"]


# ---- hostile


@pytest.mark.parametrize("name", ["..", "../x", "", ".hidden", "a/b"])
def test_a_name_that_leaves_its_directory_is_refused(paths: HostPaths, name: str) -> None:
    with pytest.raises(BadInput):
        ArrivingVolumes(paths, manifest(Path("/there"), name, comes=True))


def test_a_part_of_a_volume_that_was_not_announced_is_refused(paths: HostPaths) -> None:
    arriving = ArrivingVolumes(paths, manifest(Path("/there"), "data", comes=False))
    with pytest.raises(BadInput, match="none such"):
        arriving.apply("data", 0)
