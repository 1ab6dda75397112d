"""The store: whole or not at all, nothing lost, nothing changed without being noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from images.errors import BadInput, Conflict, Corrupt, ImageFault, NoSpace, NotFound
from images.parts import CRIU, PartInfo
from images.store import Store
from images.transfer import read_stream, write_stream
from tests.unit.images.fake_criu import InThread
from tests.unit.images.test_manifest import LEAST

PAGES = os.urandom(200_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def fill(criu_dir: str, files_dir: str) -> None:
    Path(criu_dir, "inventory.img").write_bytes(b"inventory")
    Path(criu_dir, "pages-1.img").write_bytes(PAGES)
    Path(criu_dir, "empty.img").touch()
    Path(files_dir, "upper.tar").write_bytes(b"upper")


def publish(store: Store, name: str) -> None:
    with store.begin(name) as draft:
        fill(draft.criu_dir, draft.files_dir)
        draft.publish(LEAST)


def contents(store: Store) -> set[str]:
    return {entry for entry in os.listdir(store.directory) if entry != ".lock"}


def test_a_published_checkpoint_is_read_back(store: Store) -> None:
    publish(store, "web")
    assert store.names() == ["web"]
    with store.open("web") as checkpoint:
        manifest = checkpoint.manifest
        assert manifest.name == "web"
        assert manifest.part(CRIU, "pages-1.img") == PartInfo(
            CRIU, "pages-1.img", len(PAGES), blake3(PAGES).digest()
        )
        assert [part.label for part in manifest.parts] == [
            "criu/empty.img",
            "criu/inventory.img",
            "criu/pages-1.img",
            "files/upper.tar",
        ]
        fd = checkpoint.open_part(manifest.parts[2])
        assert os.read(fd, 1 << 20) == PAGES
        os.close(fd)
    assert store.verify("web") == []
    usage = store.usage()
    assert usage.checkpoints == 1 and usage.drafts == 0 and usage.size >= len(PAGES)
    (line,) = store.list()
    assert line.name == "web" and line.fault is None and line.size >= len(PAGES)


def test_it_is_invisible_until_it_is_whole(store: Store) -> None:
    draft = store.begin("web")
    fill(draft.criu_dir, draft.files_dir)
    assert store.names() == [] and store.list() == []
    with pytest.raises(NotFound):
        store.open("web")
    draft.discard()
    draft.discard()
    assert contents(store) == set()


def test_an_error_while_it_is_written_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.begin("web") as draft:
        fill(draft.criu_dir, draft.files_dir)
        raise ZeroDivisionError
    assert contents(store) == set()


def test_digests_made_on_the_way_are_kept_and_compared_in_size(store: Store) -> None:
    right = PartInfo(CRIU, "inventory.img", 9, blake3(b"inventory").digest())
    with store.begin("web") as draft:
        fill(draft.criu_dir, draft.files_dir)
        draft.publish(LEAST, [right])
    assert store.verify("web") == []
    for wrong in (dataclasses.replace(right, size=8), dataclasses.replace(right, name="lost.img")):
        with store.begin("again") as draft:
            fill(draft.criu_dir, draft.files_dir)
            with pytest.raises(BadInput):
                draft.publish(LEAST, [wrong])
        assert contents(store) == {"web"}


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "-x", "a\0b", "a\n", "ä", "x" * 129, ".lock"]
)
def test_names_that_are_none_are_refused_everywhere(store: Store, name: str) -> None:
    publish(store, "web")
    for attempt in (
        store.begin,
        store.open,
        store.remove,
        lambda bad: store.rename("web", bad),
        lambda bad: store.rename(bad, "other"),
    ):
        with pytest.raises(BadInput) as caught:
            attempt(name)
        assert "\n" not in str(caught.value)
    assert contents(store) == {"web"}


def test_a_name_is_given_once(store: Store) -> None:
    first = store.begin("web")
    second = store.begin("web")
    fill(first.criu_dir, first.files_dir)
    first.publish(LEAST)
    with pytest.raises(Conflict):
        second.publish(LEAST)
    with pytest.raises(Conflict):
        store.begin("web")
    publish(store, "other")
    with pytest.raises(Conflict):
        store.rename("other", "web")
    assert contents(store) == {"web", "other"}


def test_removing_and_renaming(store: Store) -> None:
    publish(store, "web")
    store.rename("web", "renamed")
    assert store.names() == ["renamed"] and store.verify("renamed") == []
    for attempt in (store.remove, store.open, lambda name: store.rename(name, "x")):
        with pytest.raises(NotFound):
            attempt("web")
    store.remove("renamed")
    assert contents(store) == set()


def test_what_is_being_read_stays(store: Store) -> None:
    publish(store, "web")
    with store.open("web"), store.open("web"):
        for attempt in (store.remove, lambda name: store.rename(name, "x")):
            with pytest.raises(Conflict, match="in use"):
                attempt("web")
    store.remove("web")


def test_a_reader_in_another_process_counts_and_its_death_frees(store: Store) -> None:
    publish(store, "web")
    program = (
        "import sys; from images.store import Store\n"
        "c = Store(sys.argv[1]).open('web'); print('open', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", program, store.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(Conflict):
            store.remove("web")
        reader.kill()
    store.remove("web")


def test_sweep_takes_only_drafts_whose_owner_is_dead(store: Store) -> None:
    program = (
        "import os, sys; from images.store import Store\n"
        "d = Store(sys.argv[1]).begin('lost'); open(d.criu_dir + '/x', 'w')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, store.directory])
    (lost,) = contents(store)
    os.mkdir(os.path.join(store.directory, ".doomed-1234"))
    publish(store, "web")
    with store.begin("alive") as draft:
        alive = os.path.basename(draft.path)
        assert store.sweep() == [".doomed-1234", lost]
        assert contents(store) == {"web", alive}
        assert store.usage().drafts == 1


def test_every_flipped_byte_of_any_file_is_found(store: Store) -> None:
    publish(store, "web")
    root = Path(store.directory, "web")
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        places = range(len(data)) if len(data) < 1000 else (0, 77_777, len(data) - 1)
        for at in places:
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            problems = store.verify("web")
            assert [p.part for p in problems] == [str(path.relative_to(root))], (path, at)
        path.write_bytes(data)
    assert store.verify("web") == []


def test_what_is_missing_added_resized_or_replaced_is_found(store: Store, tmp_path: Path) -> None:
    publish(store, "web")
    root = Path(store.directory, "web")
    (root / "criu/inventory.img").unlink()
    (root / "criu/empty.img").write_bytes(b"no longer")
    (root / "files/upper.tar").unlink()
    (root / "files/upper.tar").symlink_to("/etc/passwd")
    (root / "files/extra").touch()
    (root / "more").mkdir()
    assert {p.part for p in store.verify("web")} == {
        "criu/inventory.img",
        "criu/empty.img",
        "files/upper.tar",
        "files/extra",
        "more",
    }
    (root / "manifest.msgpack").unlink()
    assert [p.part for p in store.verify("web")] == ["manifest.msgpack"]
    (line,) = store.list()
    assert line.manifest is None and isinstance(line.fault, Corrupt)
    with pytest.raises(NotFound):
        store.verify("nothing")
    store.remove("web")
    assert contents(store) == set()


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo", "socket name"])
def test_only_plain_files_become_parts(store: Store, kind: str) -> None:
    with store.begin("web") as draft:
        fill(draft.criu_dir, draft.files_dir)
        odd = Path(draft.files_dir, "odd")
        if kind == "symlink":
            odd.symlink_to("/etc/passwd")
        elif kind == "directory":
            odd.mkdir()
        elif kind == "fifo":
            os.mkfifo(odd)
        else:
            Path(draft.files_dir, "a b").touch()
        with pytest.raises(BadInput):
            draft.publish(LEAST)
    assert contents(store) == set()


def test_a_full_disk_is_one_clear_error_and_the_draft_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.begin("web") as draft:
        fill(draft.criu_dir, draft.files_dir)
        monkeypatch.setattr("images.draft.os.fsync", full)
        with pytest.raises(NoSpace, match="No space left"):
            draft.publish(LEAST)
        assert contents(store) == set()


# ---- export and import


def copy(store: Store, digest: bool, new_name: str = "copy") -> None:
    reader, writer = os.pipe()
    with store.open("web") as checkpoint, store.begin(new_name) as draft:

        def export() -> int:
            try:
                return write_stream(checkpoint, writer, digest=digest)
            finally:
                os.close(writer)

        exporting = InThread(export)
        try:
            manifest, parts = read_stream(reader, draft)
            draft.publish(manifest, parts)
        finally:
            os.close(reader)
            with contextlib.suppress(ImageFault):
                exporting.join()


@pytest.mark.parametrize("digest", [False, True])
def test_an_exported_checkpoint_is_imported_as_it_was(store: Store, digest: bool) -> None:
    publish(store, "web")
    copy(store, digest)
    assert store.verify("copy") == []
    with store.open("web") as old, store.open("copy") as new:
        assert new.manifest == dataclasses.replace(old.manifest, name="copy")


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "unlink"])
def test_a_broken_checkpoint_is_not_imported(store: Store, harm: str, digest: bool) -> None:
    publish(store, "web")
    pages = Path(store.directory, "web/criu/pages-1.img")
    if harm == "unlink":
        pages.unlink()
    else:
        changed = {"flip": b"!" + PAGES[1:], "cut": PAGES[:-1], "grow": PAGES + b"x"}[harm]
        pages.write_bytes(changed)
    with pytest.raises(ImageFault):
        copy(store, digest)
    assert contents(store) == {"web"}


def test_a_checkpoint_can_be_opened_only_with_its_manifest(store: Store) -> None:
    publish(store, "web")
    Path(store.directory, "web/manifest.msgpack").write_bytes(b"CKPTMANI")
    with pytest.raises(Corrupt):
        store.open("web")
