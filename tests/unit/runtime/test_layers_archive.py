"""Archives become layers, or one clear error with nothing left behind."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from runtime.errors import BadInput, RuntimeFault
from runtime.layers import LayerStore, Limits

UID, GID = os.getuid(), os.getgid()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.uid, info.gid, info.mtime = UID, GID, 1000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def pack(*members, root=True, **options) -> bytes:
    """A tar archive of (TarInfo, content) pairs or TarInfos."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, **options) as tar:
        if root:
            tar.addfile(member("./", tarfile.DIRTYPE))
        for item in members:
            info, content = item if isinstance(item, tuple) else (item, b"")
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def store(tmp_path):
    return LayerStore(str(tmp_path / "layers"))


def load(store: LayerStore, data: bytes, **options) -> Path:
    return Path(store.path(store.import_archive(io.BytesIO(data), **options)))


def leftovers(store: LayerStore) -> list[str]:
    return [n for n in os.listdir(store.directory) if n not in (".seen", ".lock")]


def refuse(store: LayerStore, data: bytes, why: str, **options) -> str:
    with pytest.raises(RuntimeFault, match=why) as caught:
        store.import_archive(io.BytesIO(data), **options)
    assert leftovers(store) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sample() -> list:
    return [
        member("./dir", tarfile.DIRTYPE, mode=0o1777),
        (member("./dir/file", mode=0o4711), b"content"),
        member("link", tarfile.SYMTYPE, linkname="/absolute/../is/fine"),
        member("hard", tarfile.LNKTYPE, linkname="./dir/file"),
        member("fifo", tarfile.FIFOTYPE),
    ]


def test_what_is_in_the_archive_is_in_the_layer(store):
    tree = load(store, pack(*sample()))
    assert (tree / "dir/file").read_bytes() == b"content"
    assert stat.S_IMODE((tree / "dir/file").stat().st_mode) == 0o4711
    assert stat.S_IMODE((tree / "dir").stat().st_mode) == 0o1777
    assert os.readlink(tree / "link") == "/absolute/../is/fine"
    assert (tree / "hard").stat().st_ino == (tree / "dir/file").stat().st_ino
    assert stat.S_ISFIFO((tree / "fifo").stat().st_mode)
    assert (tree / "dir").stat().st_mtime == 1000


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, zstandard.ZstdCompressor().compress, lambda d: d],
    ids=["gzip", "zstd", "plain"],
)
def test_compression_doesn_t_change_the_digest(store, compress):
    plain = pack(*sample(), (member("big"), os.urandom(700_000)))
    first = store.import_archive(io.BytesIO(plain))
    assert store.import_archive(io.BytesIO(compress(plain))) == first
    store.verify(first)
    assert leftovers(store) == [first]


def test_zstd_in_several_frames(store):
    data = pack(*sample(), (member("big"), os.urandom(700_000)))
    compressor = zstandard.ZstdCompressor()
    frames = compressor.compress(data[:300_000]) + compressor.compress(data[300_000:])
    assert load(store, frames) == load(store, data)


def test_times_keep_their_nanoseconds(store):
    info = member("f")
    info.pax_headers = {"mtime": "1700000000.123456789"}
    assert (load(store, pack((info, b""))) / "f").stat().st_mtime_ns == 1700000000123456789


def test_long_and_strange_names(store):
    parents = ["/".join(["d" * 200] * depth) for depth in range(1, 6)]
    name = f"{parents[-1]}/" + "ü" * 60
    described = [member(parent, tarfile.DIRTYPE) for parent in parents]
    tree = load(store, pack(*described, (member(name), b"far")))
    assert (tree / name).read_bytes() == b"far"


def test_attributes_of_users_are_kept_and_others_dropped(store):
    info = member("f")
    value = b"\0\xff binary".decode("utf-8", "surrogateescape")
    info.pax_headers = {"SCHILY.xattr.user.x": value, "SCHILY.xattr.security.selinux": "label"}
    tree = load(store, pack((info, b"")))
    assert os.listxattr(tree / "f") == ["user.x"]
    assert os.getxattr(tree / "f", "user.x") == b"\0\xff binary"


@pytest.mark.parametrize("sparse", ["--format=gnu", "--sparse-version=0.1", "--sparse-version=1.0"])
def test_sparse_files_stay_sparse(store, tmp_path, sparse):
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in/f", "wb") as file:
        for offset in (0, 5_000_000, 20_000_000):
            file.seek(offset)
            file.write(b"data")
        file.truncate(50_000_000)
    form = [] if "gnu" in sparse else ["--format=pax"]
    data = subprocess.run(
        ["tar", "-C", str(tmp_path / "in"), "--sparse", *form, sparse, "-c", "."],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert len(data) < 1_000_000
    tree = load(store, data)
    assert (tree / "f").read_bytes() == (tmp_path / "in/f").read_bytes()
    assert (tree / "f").stat().st_blocks * 512 < 1_000_000


def test_an_archive_and_its_directory_give_the_same_layer(store, tmp_path):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "sub/f").write_bytes(os.urandom(200_000))
    (source / "l").symlink_to("sub/f")
    os.link(source / "sub/f", source / "h")
    data = subprocess.run(
        ["tar", "--format=posix", "-C", str(source), "-c", "."], stdout=subprocess.PIPE, check=True
    ).stdout
    assert store.import_archive(io.BytesIO(data)) == store.import_directory(str(source))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("../escape", r'"\.\."'),
        ("a/../../escape", r'"\.\."'),
        ("a//b", "empty"),
        ("x" * 300, "longer than 255"),
        ("a/" * 2100 + "a", "longer than 4095"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(store, name, why):
    refuse(store, pack((member(name), b"bad")), why)


def test_a_symbolic_link_is_never_passed(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = member("d", tarfile.SYMTYPE, linkname=str(outside))
    refuse(store, pack(link, (member("d/f"), b"bad")), "no directory")
    refuse(store, pack(link, member("d", tarfile.DIRTYPE), (member("d/f"), b"")), "twice")
    hard = member("h", tarfile.LNKTYPE, linkname="d/f")
    refuse(store, pack(link, hard), "isn't in the archive")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "missing", "d"])
def test_a_hard_link_to_what_isn_t_a_file_of_the_archive_is_refused(store, target):
    link = member("h", tarfile.LNKTYPE, linkname=target)
    refuse(store, pack(member("d", tarfile.DIRTYPE), link), "unpacking")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_are_refused_by_name_or_skipped(store, kind):
    for major, minor in ((1, 3), (0, 0)):
        data = pack(member("dev/null", kind, devmajor=major, devminor=minor))
        assert "dev/null" in refuse(store, data, "device node")
    ownerless = pack(member("dev", tarfile.DIRTYPE), member("dev/null", kind, devmajor=1))
    assert list((load(store, ownerless, devices="skip") / "dev").iterdir()) == []


def test_a_name_twice_is_refused(store):
    refuse(store, pack((member("f"), b"1"), (member("f"), b"2")), "f: the archive has the name")
    refuse(store, pack((member("d/f"), b"1"), (member("d"), b"2")), "twice")
    refuse(store, pack((member("f"), b"1"), (member("f/g"), b"2")), "no directory")


def test_a_directory_may_be_described_after_its_content(store):
    tree = load(store, pack((member("d/f"), b"1"), member("d", tarfile.DIRTYPE, mode=0o700)))
    assert stat.S_IMODE((tree / "d").stat().st_mode) == 0o700


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress, bytes])
def test_an_archive_cut_anywhere_is_refused(store, compress):
    data = compress(pack(*sample(), (member("big"), os.urandom(20_000)), *[]))
    whole = len(data) - (10_240 if compress is bytes else 0)
    points = {0, 1, 5, 100, 512, 1024, 1536, 2048, 4096, whole - 1, whole // 2, whole // 512 * 512}
    for cut in sorted(point for point in points if 0 <= point < len(data)):
        if compress is bytes and not any(data[cut - 512 : cut]) and cut > 1024:
            continue  # the end mark's first block: nothing is missing
        refuse(store, data[:cut], "unpacking")


def test_a_damaged_header_in_the_middle_is_no_end(store):
    data = bytearray(pack((member("a"), b"1"), (member("b"), b"2")))
    at = data.index(b"b\0\0\0")
    data[at] ^= 1
    refuse(store, bytes(data), "damaged")


def test_a_flipped_bit_in_a_compressed_archive_is_noticed(store):
    data = bytearray(gzip.compress(pack((member("a"), os.urandom(5000)))))
    data[-6] ^= 1  # the checksum
    refuse(store, bytes(data), "unpacking")


def test_something_behind_the_end_is_refused(store):
    refuse(store, pack((member("a"), b"1")) + b"more", "behind the end")


def test_what_is_no_archive_is_refused(store):
    for data in (b"", b"hello", os.urandom(5000), b"BZh91AY", b"\x1f\x8b" + os.urandom(50)):
        refuse(store, data, "unpacking")


def test_bounds_on_files_and_bytes(tmp_path):
    store = LayerStore(str(tmp_path / "l"), limits=Limits(entries=3, data=1000, file=2000))
    refuse(store, pack(*[(member(f"f{n}"), b"") for n in range(4)]), "more than 3 files")
    refuse(store, pack((member("f"), bytes(1500))), "exceeds 1000 bytes")
    refuse(store, pack((member("f"), bytes(2500))), "beyond 2000")


def test_a_header_that_declares_gigabytes_is_refused_early(store):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
        info = member("x", kind)
        info.size = 3 << 30
        bomb = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(20 << 20))
        refuse(store, bomb, "unreasonably large")


def test_a_sparse_bomb_takes_no_space(store):
    info = member("f")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "f",
        "GNU.sparse.size": str(1 << 41),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": f"{(1 << 41) - 5},5",
    }
    tree = load(store, pack((info, b"12345")))
    assert (tree / "f").stat().st_size == 1 << 41
    assert (tree / "f").stat().st_blocks < 1000
    info.pax_headers["GNU.sparse.size"] = str(1 << 60)
    with pytest.raises(BadInput, match="beyond"):
        store.import_archive(io.BytesIO(pack((info, b"12345"))))


def test_a_map_of_holes_that_lies_is_refused(store):
    info = member("f")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "f",
        "GNU.sparse.size": "100",
        "GNU.sparse.map": "90,50",
    }
    refuse(store, pack((info, bytes(50))), "nonsense")


def test_negative_and_huge_numbers_in_a_header(store):
    for field, start in (("size", 124), ("uid", 108), ("mode", 100)):
        raw = bytearray(pack((member("f"), b"x"), root=False)[:512])
        length = 12 if field == "size" else 8
        for value in (-5, 1 << 60 if field == "size" else 1 << 50):
            number = value.to_bytes(length, "big", signed=True)
            raw[start : start + length] = number
            raw[start] = 0xFF if value < 0 else 0x80
            raw[148:156] = b"        "
            raw[148:156] = b"%06o\0 " % sum(raw)
            broken = bytes(raw) + bytes(20_480)
            if field == "mode":
                continue
            refuse(store, broken, "unpacking")


def test_an_archive_from_a_pipe(store):
    reader, writer = os.pipe()
    data = pack(*sample())
    os.write(writer, data)
    os.close(writer)
    digest = store.import_archive(reader)
    os.close(reader)
    assert digest == store.import_archive(io.BytesIO(data))


def test_an_unchanged_archive_is_read_once(store, tmp_path, monkeypatch):
    file = tmp_path / "a.tar"
    file.write_bytes(pack(*sample()))
    os.utime(file, ns=(1, 1))
    while os.stat(file).st_ctime_ns > __import__("time").time_ns() - 30_000_000:
        pass
    first = store.import_archive(str(file))
    monkeypatch.setattr("runtime.layers.store.unpack", lambda *a, **k: pytest.fail("read again"))
    assert store.import_archive(str(file)) == first
    monkeypatch.undo()
    file.write_bytes(pack((member("other"), b"")))
    assert store.import_archive(str(file)) != first


def test_errors_stay_one_printable_line(store):
    text = refuse(store, pack((member("../\x1b[31m\nx"), b"")), "unpacking")
    assert "\x1b" not in text
