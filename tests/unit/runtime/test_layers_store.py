"""A layer store: layers come in whole, are found by digest, and leave only unused."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from runtime import tree
from runtime.errors import BadInput, Conflict, NotFound, RuntimeFault
from runtime.layers import LayerStore

ABSENT = "0" * 64


@pytest.fixture
def store(tmp_path):
    return LayerStore(str(tmp_path / "layers"))


@pytest.fixture
def source(tmp_path):
    where = tmp_path / "source"
    (where / "bin").mkdir(parents=True)
    (where / "bin/sh").write_bytes(os.urandom(400_000))
    (where / "bin/sh").chmod(0o4755)
    (where / "sh").symlink_to("bin/sh")
    os.link(where / "bin/sh", where / "bin/bash")
    os.mkfifo(where / "fifo")
    with open(where / "sparse", "wb") as file:
        file.truncate(100_000_000)
    settle()
    return where


def settle() -> None:
    """Until what was just written is old enough for its time stamp to be trusted."""
    time.sleep(0.03)


def names(store: LayerStore) -> set[str]:
    return {name for name in os.listdir(store.directory) if name not in (".seen", ".lock")}


def test_a_directory_becomes_an_equal_layer(store, source):
    digest = store.import_directory(str(source))
    copy = store.path(digest)
    assert tree.tree_digest(copy) == tree.tree_digest(str(source)) == digest
    assert (Path(copy) / "sparse").stat().st_blocks == 0
    assert (Path(copy) / "bin/sh").stat().st_ino == (Path(copy) / "bin/bash").stat().st_ino
    assert names(store) == {digest}
    assert store.info(digest).source == str(source)
    store.verify(digest)


def test_other_users_can_t_reach_into_the_store(store):
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700


def test_an_unchanged_directory_is_not_read_again(store, source, monkeypatch):
    digest = store.import_directory(str(source))
    monkeypatch.setattr("runtime.layers.store.copy_tree", lambda *a, **k: pytest.fail("copied"))
    assert store.import_directory(str(source)) == digest


def test_a_changed_directory_is_another_layer(store, source):
    digest = store.import_directory(str(source))
    st = (source / "bin/sh").stat()
    with open(source / "bin/sh", "r+b") as file:
        file.write(b"!")
    os.utime(source / "bin/sh", ns=(st.st_atime_ns, st.st_mtime_ns))
    assert store.import_directory(str(source)) != digest


def test_a_removed_layer_is_imported_again(store, source):
    digest = store.import_directory(str(source))
    store.remove(digest, lambda _: False)
    assert not store.has(digest)
    assert names(store) == set()
    assert store.import_directory(str(source)) == digest
    assert store.has(digest)


def test_a_layer_in_use_stays(store, source):
    digest = store.import_directory(str(source))
    with pytest.raises(Conflict, match="uses it"):
        store.remove(digest, lambda asked: asked == digest)
    store.verify(digest)


def test_removal_waits_for_those_who_rely_on_layers(store, source):
    digest = store.import_directory(str(source))
    used: set[str] = set()
    outcome: list[object] = []

    def remove() -> None:
        try:
            store.remove(digest, used.__contains__)
        except Conflict as error:
            outcome.append(error)

    with store.pinned():
        remover = threading.Thread(target=remove)
        remover.start()
        used.add(digest)
    remover.join()
    assert len(outcome) == 1
    assert store.has(digest)


def test_verify_finds_a_flipped_byte(store, source):
    digest = store.import_directory(str(source))
    with open(Path(store.path(digest)) / "bin/sh", "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BadInput, match="changed"):
        store.verify(digest)


@pytest.mark.parametrize("bad", ["", "abc", "../../etc", "g" * 64, ABSENT + "/", ABSENT + "\n"])
def test_what_is_no_digest_is_no_layer(store, bad):
    assert not store.has(bad)
    for action in (store.path, store.verify, store.info, lambda d: store.remove(d, bool)):
        with pytest.raises(BadInput, match="no digest"):
            action(bad)


def test_a_layer_that_isn_t_here(store):
    for action in (store.path, store.verify, store.info, lambda d: store.remove(d, bool)):
        with pytest.raises(NotFound):
            action(ABSENT)


def test_generated_layers(store):
    files = {"sbin/init": (0o755, b"\x7fELF"), "etc/x": (0o600, b"")}
    if os.getuid() != 0:
        pytest.skip("generated layers belong to root")
    digest = store.ensure_layer_from_files(files)
    fs = Path(store.path(digest))
    assert (fs / "sbin/init").read_bytes() == b"\x7fELF"
    assert stat.S_IMODE((fs / "sbin/init").stat().st_mode) == 0o755
    store.verify(digest)
    assert store.ensure_layer_from_files(dict(reversed(files.items()))) == digest
    assert len(store.list()) == 1


def test_sweep_takes_abandoned_drafts_only(store):
    abandoned = Path(store.directory) / ".draft-dead"
    (abandoned / "fs/deep").mkdir(parents=True)
    with store._draft() as living:
        assert store.sweep() == 1
        assert os.path.isdir(living)
    assert names(store) == set()


def test_a_layer_can_be_received(store, source, tmp_path):
    digest = store.import_directory(str(source))
    other = LayerStore(str(tmp_path / "other"))
    reader, writer = os.pipe()

    def give() -> None:
        everything = tree.diff(tree.EMPTY, tree.snapshot(store.path(digest)))
        tree.send(store.path(digest), everything, writer)
        os.close(writer)

    sender = threading.Thread(target=give)
    sender.start()
    with other.adopt(digest) as draft:
        tree.receive(reader, draft)
    sender.join()
    os.close(reader)
    assert other.has(digest)
    other.verify(digest)
    assert names(other) == {digest}
    with pytest.raises(BadInput, match="what arrived"), other.adopt(ABSENT) as draft:
        (Path(draft) / "x").touch()
    assert names(other) == {digest}


def test_sockets_are_left_out_and_the_store_itself(tmp_path):
    import socket

    source = tmp_path / "source"
    source.mkdir()
    store = LayerStore(str(source / "layers"))
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(source, os.O_PATH)
        bound.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    fs = Path(store.path(store.import_directory(str(source))))
    assert os.listdir(fs) == ["layers"]
    assert os.listdir(fs / "layers") == []


def test_excluded_directories_are_empty(store, source):
    fs = Path(store.path(store.import_directory(str(source), exclude=[str(source / "bin")])))
    assert os.listdir(fs / "bin") == []


def test_a_failed_import_leaves_nothing(store, source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.layers.copy._Copier._range", full)
    monkeypatch.setattr("runtime.layers.copy._Copier.special", full)
    with pytest.raises(RuntimeFault, match="No space left"):
        store.import_directory(str(source))
    assert names(store) == set()


def test_importing_what_isn_t_there(store, tmp_path):
    with pytest.raises(NotFound):
        store.import_directory(str(tmp_path / "none"))
    with pytest.raises(NotFound):
        store.import_archive(str(tmp_path / "none.tar"))


def test_two_imports_of_the_same_at_once(store, source):
    digests = []
    threads = [
        threading.Thread(target=lambda: digests.append(store.import_directory(str(source))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert names(store) == set(digests)


def test_a_very_deep_tree_is_deleted(tmp_path):
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    fd = os.open(doomed, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=fd)
        inner = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with pytest.raises(RuntimeFault, match="less deep"):
        tree.snapshot(str(doomed))
    tree.remove_tree(str(doomed))
    assert not doomed.exists()


def test_a_received_layer_can_t_smuggle_in_overlay_s_marks(store, source, tmp_path):
    digest = store.import_directory(str(source))
    other = LayerStore(str(tmp_path / "other"))
    with pytest.raises(BadInput, match="what arrived"), other.adopt(digest) as draft:
        subprocess.run(["cp", "-a", f"{store.path(digest)}/.", draft], check=True)
        os.setxattr(Path(draft) / "bin", "user.overlay.opaque", b"y")
    with other.adopt(digest) as draft:
        subprocess.run(["cp", "-a", f"{store.path(digest)}/.", draft], check=True)
    assert other.has(digest)
