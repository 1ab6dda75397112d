"""Real dumps and restores through our streamer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.bundle_stream import StreamReader, StreamWriter
from images.criu_stream import CaptureReport
from images.parts import CRIU, INVENTORY
from images.receive import receive
from images.spool import Spool
from images.store import Store
from tests import needs, runtag
from tests.e2e.images_lab.lab import dump, restored, started
from tests.unit.images.fake_criu import InThread
from tests.unit.images.test_manifest import LEAST

pytestmark = [needs.root, needs.criu]


@pytest.fixture
def lab() -> Iterator[Path]:
    """A short path: CRIU cuts longer socket paths off."""
    with tempfile.TemporaryDirectory(prefix=f"ckpt-{runtag.TAG}-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_tree_goes_on_after_capture_checkpoint_stream_and_serve(lab: Path) -> None:
    reader_fd, writer_fd = os.pipe()
    with Spool(release_as_read=True) as spool:

        def send() -> CaptureReport:
            with started(lab) as workload, StreamWriter(writer_fd) as writer:
                workload.goes_on()
                writer.manifest(LEAST.to_bytes())
                report = dump(workload, lab, writer.sink(CRIU))
                writer.end()
            os.close(writer_fd)
            assert isinstance(report, CaptureReport)
            return report

        def take() -> None:
            with StreamReader(reader_fd) as reader:
                receive(reader, {CRIU: spool})
            spool.end()

        taking = InThread(take)
        report = send()
        taking.join()
        os.close(reader_fd)
        assert report.complete and report.files[-1][0] == INVENTORY
        with restored(lab, spool.source()) as workload:
            workload.goes_on()
            assert workload.verify() == "good"


@pytest.mark.parametrize("digest", [False, True])
def test_a_stored_dump_is_restored_twice_and_is_untouched(lab: Path, digest: bool) -> None:
    store = Store(str(lab / "store"))
    with started(lab) as workload, store.begin("one") as draft:
        sink = draft.sink(CRIU, digest=digest)
        dump(workload, lab, sink)
        draft.publish(LEAST, sink.written.values())
    for _ in range(2):
        with store.open("one") as checkpoint, restored(lab, checkpoint.source()) as workload:
            workload.goes_on()
            assert workload.verify() == "good"
    assert store.verify("one") == []
