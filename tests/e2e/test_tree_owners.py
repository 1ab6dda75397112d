"""What needs root: owners in shifted ranges, overlayfs's marks, ACLs, capabilities."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from runtime import tree
from runtime.errors import Unsupported
from runtime.layers import LayerStore
from tests import needs

pytestmark = [needs.root]

HERE, THERE = (1_000_000, 65536), (7_000_000, 65536)


def move(source: Path, target: Path, here=HERE, there=THERE, sync=None):
    reader, writer = os.pipe()
    failed = []

    def take() -> None:
        try:
            tree.receive(reader, str(target), id_shift=there)
        except BaseException as error:
            failed.append(error)
        finally:
            os.close(reader)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        sync = sync or tree.Synchroniser(str(source), id_shift=here)
        return sync.round(writer)
    finally:
        os.close(writer)
        thread.join()
        if failed:
            raise failed[0]


@pytest.fixture
def both(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for directory, (base, _) in ((source, HERE), (target, THERE)):
        directory.mkdir()
        os.chown(directory, base, base)
    return source, target


def own(path: Path, uid: int, gid: int) -> None:
    os.chown(path, HERE[0] + uid, HERE[0] + gid, follow_symlinks=False)


def equal(source: Path, target: Path) -> bool:
    return tree.tree_digest(str(source), HERE) == tree.tree_digest(str(target), THERE)


def test_owners_move_to_the_other_range(both):
    source, target = both
    for name, uid, gid in (("root", 0, 0), ("web", 33, 34), ("last", 65535, 65535)):
        (source / name).write_text(name)
        own(source / name, uid, gid)
    (source / "link").symlink_to("web")
    own(source / "link", 5, 6)
    os.mkfifo(source / "fifo")
    own(source / "fifo", 7, 8)
    (source / "setuid").write_bytes(b"")
    own(source / "setuid", 1, 2)
    (source / "setuid").chmod(0o6711)
    move(source, target)
    assert (target / "web").stat().st_uid == THERE[0] + 33
    assert (target / "link").lstat().st_gid == THERE[0] + 6
    assert (target / "fifo").stat().st_uid == THERE[0] + 7
    assert stat.S_IMODE((target / "setuid").stat().st_mode) == 0o6711
    assert (target / "setuid").stat().st_uid == THERE[0] + 1
    assert equal(source, target)


def test_an_owner_outside_the_range_is_refused_by_name(both):
    source, target = both
    (source / "foreign").write_bytes(b"")
    os.chown(source / "foreign", 0, 0)
    with (
        pytest.raises(Unsupported, match=r"foreign: the id 0 lies outside"),
        open(os.devnull, "wb") as sink,
    ):
        tree.Synchroniser(str(source), id_shift=HERE).round(sink.fileno())


def test_device_nodes_are_refused_by_name(both):
    source, _ = both
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    own(source / "null", 0, 0)
    with pytest.raises(Unsupported, match=r"null: device nodes"), open(os.devnull, "wb") as sink:
        tree.Synchroniser(str(source), id_shift=HERE).round(sink.fileno())


def test_acls_and_file_capabilities_are_shifted(both):
    source, target = both
    acl = struct.pack("<I", 2)
    for tag, perm, who in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, HERE[0] + 33),
        (0x04, 4, 0xFFFFFFFF),
        (0x08, 4, HERE[0] + 34),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ):
        acl += struct.pack("<HHI", tag, perm, who)
    capability = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, HERE[0])
    (source / "f").write_bytes(b"")
    own(source / "f", 0, 0)
    (source / "d").mkdir()
    own(source / "d", 0, 0)
    os.setxattr(source / "f", "system.posix_acl_access", acl)
    os.setxattr(source / "d", "system.posix_acl_default", acl)
    os.setxattr(source / "f", "security.capability", capability)
    move(source, target)
    assert equal(source, target)
    got = os.getxattr(target / "f", "system.posix_acl_access")
    assert struct.unpack_from("<HHI", got, 12)[2] == THERE[0] + 33
    assert struct.unpack_from("<I", os.getxattr(target / "f", "security.capability"), 20) == (
        THERE[0],
    )
    assert os.getxattr(target / "d", "system.posix_acl_default") is not None


@needs.overlayfs
def test_an_upper_directory_means_the_same_at_the_other_end(tmp_path, both):
    """Delete, replace, rename and change what the layer has; the moved upper shows the same."""
    lower = tmp_path / "lower"
    for name in ("gone", "kept", "changed", "opaque/old", "renamed/deep", "linked"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text(f"lower {name}")
    for directory in ("gonedir/x",):
        (lower / directory).mkdir(parents=True)
    source, target = both

    def mounted(upper: Path, action) -> list:
        work, merged = tmp_path / f"work-{upper.name}", tmp_path / f"merged-{upper.name}"
        for directory in (work, merged):
            directory.mkdir(exist_ok=True)
        options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True
        )
        try:
            action(merged)
            return sorted(
                (str(p.relative_to(merged)), p.is_file() and p.read_text())
                for p in merged.rglob("*")
            )
        finally:
            subprocess.run(["umount", str(merged)], check=True)

    def change(root: Path) -> None:
        (root / "gone").unlink()
        (root / "gonedir/x").rmdir()
        (root / "gonedir").rmdir()
        (root / "changed").write_text("upper")
        (root / "opaque/old").unlink()
        (root / "opaque").rmdir()
        (root / "opaque").mkdir()
        (root / "opaque/new").write_text("new")
        (root / "renamed").rename(root / "elsewhere")
        os.link(root / "linked", root / "linked2")
        for path in [root, *root.rglob("*")]:
            os.chown(path, HERE[0], HERE[0], follow_symlinks=False)

    seen = mounted(source, change)
    assert stat.S_ISCHR((source / "gone").lstat().st_mode)
    sync = tree.Synchroniser(str(source), id_shift=HERE)
    move(source, target, sync=sync)
    assert equal(source, target)
    assert os.getxattr(target / "opaque", "trusted.overlay.opaque") == b"y"
    assert "trusted.overlay.origin" not in os.listxattr(target / "changed")
    assert stat.S_ISCHR((target / "gone").lstat().st_mode)
    assert mounted(target, lambda root: None) == seen

    def more(root: Path) -> None:
        (root / "kept").unlink()
        (root / "gone").write_text("back")
        os.chown(root / "gone", HERE[0], HERE[0])

    again = mounted(source, more)
    # The look at the target above changed nothing in it that travels, so the next round fits.
    move(source, target, sync=sync)
    assert equal(source, target)
    assert mounted(target, lambda root: None) == again


def test_mounts_below_a_tree_are_not_entered(tmp_path):
    source = tmp_path / "source"
    (source / "mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source / "mounted")], check=True)
    try:
        (source / "mounted/inside").write_bytes(b"x")
        store = LayerStore(str(tmp_path / "layers"))
        fs = Path(store.path(store.import_directory(str(source))))
        assert os.listdir(fs / "mounted") == []
        crossed = Path(store.path(store.import_directory(str(source), cross_mounts=True)))
        assert os.listdir(crossed / "mounted") == ["inside"]
        with pytest.raises(Exception, match="mounted below"):
            tree.remove_tree(str(source))
    finally:
        subprocess.run(["umount", str(source / "mounted")], check=True)


def test_layers_keep_owners_and_capabilities(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "ping").write_bytes(b"\x7fELF")
    os.chown(source / "ping", 12, 34)
    (source / "ping").chmod(0o2755)
    value = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(source / "ping", "security.capability", value)
    os.setxattr(source / "ping", "trusted.overlay.opaque", b"y")
    store = LayerStore(str(tmp_path / "layers"))
    digest = store.import_directory(str(source))
    copy = Path(store.path(digest)) / "ping"
    assert (copy.stat().st_uid, copy.stat().st_gid) == (12, 34)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o2755
    assert os.listxattr(copy) == ["security.capability"]
    archive = tmp_path / "a.tar"
    subprocess.run(
        ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "-C", str(source)]
        + ["-cf", str(archive), "."],
        check=True,
    )
    assert store.import_archive(str(archive)) == digest


def test_a_full_disk_leaves_nothing(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(3 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        store = LayerStore(str(place / "layers"))
        with pytest.raises(Exception, match=r"exceeds|No space"):
            store.import_directory(str(source))
        assert os.listdir(store.directory) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
