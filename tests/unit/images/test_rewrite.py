"""Rewriting small images on their way, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from images.criu_stream import Serve
from images.errors import BadInput, Corrupt, ImageFault
from images.image_file import build_image, parse_image
from images.moving import Mover
from images.rewrite import FilteredSink, FilteredSource, Rewriter, rewrite_userns
from images.sources import DirectorySource
from images.spool import Spool
from tests import needs
from tests.unit.images.fake_criu import InThread, Restorer

pytestmark = needs.pycriu


def userns(*uids: tuple[int, int, int], gids: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    def extents(maps: Any) -> list[dict[str, int]]:
        return [{"first": a, "lower_first": b, "count": c} for a, b, c in maps]

    entry = {"uid_map": extents(uids), "gid_map": extents(gids or uids)}
    return build_image("USERNS", [entry])


def test_only_the_host_ids_move() -> None:
    old = userns((0, 100000, 1000), (1000, 101000, 5), gids=((0, 100000, 65536),))
    new = userns((0, 300000, 1000), (1000, 301000, 5), gids=((0, 300000, 65536),))
    assert rewrite_userns(old, 100000, 300000) == new
    assert rewrite_userns(new, 300000, 100000) == old
    assert rewrite_userns(old, 5, 5) == old


@pytest.mark.parametrize(
    ("extent", "old", "new"),
    [((0, 500, 10), 1000, 0), ((0, 1000, 65536), 1000, (1 << 32) - 100), ((0, 0, 1), 0, -1)],
)
def test_what_would_be_no_range_of_ids_is_refused(
    extent: tuple[int, int, int], old: int, new: int
) -> None:
    with pytest.raises(BadInput):
        rewrite_userns(userns(extent), old, new)


@pytest.mark.parametrize("harm", ["cut", "garbage", "other", "empty", "twice"])
def test_a_broken_image_is_named(harm: str) -> None:
    good = userns((0, 1000, 10))
    data = {
        "cut": good[:-3],
        "garbage": good[:8] + os.urandom(20),
        "other": build_image("FS", []),
        "empty": good[:8],
        "twice": good + good[8:],
    }[harm]
    with pytest.raises(Corrupt, match=r"userns\.img"):
        rewrite_userns(data, 1000, 2000)


def take(sink: FilteredSink, name: str, data: bytes, step: int) -> None:
    reader, writer = os.pipe()
    part = sink.open(name)
    try:
        with Mover(doing="moving", target="test") as mover:
            for at in range(0, len(data), step):
                piece = data[at : at + step]
                os.write(writer, piece)
                part.take(mover, reader, len(piece))
        part.close()
    except BaseException:
        part.abandon()
        raise
    finally:
        os.close(reader)
        os.close(writer)


def test_a_filtered_sink_rewrites_what_it_is_told_to_and_passes_the_rest() -> None:
    rewriter = Rewriter()
    rewriter.move_ids(1000, 2000)
    with Spool() as spool:
        sink = FilteredSink(spool, rewriter)
        take(sink, "userns-9.img", userns((0, 1000, 10)), 7)
        take(sink, "fs-9.img", userns((0, 1000, 10)), 7)
        assert spool.read("userns-9.img") == userns((0, 2000, 10))
        assert spool.read("fs-9.img") == userns((0, 1000, 10))
        with pytest.raises(ImageFault):
            take(sink, "userns-10.img", b"broken", 7)
        assert "userns-10.img" not in spool.infos()
        with pytest.raises(Corrupt, match="more than"):
            take(sink, "userns-11.img", bytes(17 << 20), 60000)


def test_a_filtered_source_does_the_same_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/userns-9.img").write_bytes(userns((0, 1000, 10)))
    (tmp_path / "images/fs-9.img").write_bytes(b"x" * 300_000)
    directory = os.open(tmp_path / "images", os.O_RDONLY)
    rewriter = Rewriter()
    rewriter.move_ids(1000, 2000)
    source = FilteredSource(DirectorySource(directory), rewriter)
    serve = Serve(str(tmp_path))
    running = InThread(lambda: serve.run(source))
    criu = Restorer(tmp_path)
    for _ in range(2):
        assert criu.get("userns-9.img") == userns((0, 2000, 10))
    assert criu.get("fs-9.img") == b"x" * 300_000
    assert criu.get("userns-10.img") is None
    criu.close()
    running.join()
    os.close(directory)


def test_rewritten_images_can_be_read_by_criu() -> None:
    (entry,) = parse_image(rewrite_userns(userns((0, 1, 10)), 1, 2), "u", "USERNS")
    assert entry["uid_map"] == [{"first": 0, "lower_first": 2, "count": 10}]
