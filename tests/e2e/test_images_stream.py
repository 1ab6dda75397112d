"""Real dumps and restores through our streamer."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.bundle_stream import StreamReader, StreamWriter
from images.criu_stream import Capture, CaptureReport
from images.errors import NoSpace, Stalled
from images.parts import CRIU, INVENTORY
from images.receive import receive
from images.spool import Spool
from images.store import Store
from tests import needs, runtag
from tests.e2e.images_lab.lab import criu_dump, dump, restored, started
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


def test_a_streamer_that_fails_leaves_the_tree_running(lab: Path) -> None:
    work = lab / "d"
    work.mkdir()
    with started(lab) as workload, Spool(limit=1 << 20) as spool:
        capture = Capture(str(work))
        running = InThread(lambda: capture.run(spool))
        criu = criu_dump(workload, work)
        with pytest.raises(NoSpace):
            running.join()
        assert criu.wait(30) != 0
        workload.goes_on()
        assert workload.verify() == "good"


def test_a_stalled_dump_is_given_up_and_the_tree_runs_on(lab: Path) -> None:
    """The place that the bytes go to takes none: the tasks are frozen meanwhile."""
    work = lab / "d"
    work.mkdir()
    reader_fd, writer_fd = os.pipe()
    with started(lab) as workload, StreamWriter(writer_fd, stall=0.5) as writer:
        writer.manifest(LEAST.to_bytes())
        capture = Capture(str(work))
        running = InThread(lambda: capture.run(writer.sink(CRIU)))
        criu = criu_dump(workload, work)
        with pytest.raises(Stalled):
            running.join()
        assert criu.wait(30) != 0
        workload.goes_on()
        assert workload.verify() == "good"
    os.close(reader_fd)
    os.close(writer_fd)


def test_a_dump_that_leaves_the_tree_running_is_told_complete_before_criu_goes_on(
    lab: Path,
) -> None:
    """Held in the post-dump hook, CRIU hasn't resumed the tasks when all bytes are here."""
    work = lab / "d"
    work.mkdir()
    hold = work / "hold"
    os.mkfifo(hold)
    hook = work / "hook"
    hook.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || read x < {hold}\n')
    hook.chmod(0o700)
    frozen_at = []

    with started(lab) as workload, Spool() as spool:

        def complete() -> None:
            frozen_at.append(workload.count())
            time.sleep(0.2)
            frozen_at.append(workload.count())
            hold.write_text("go\n")

        capture = Capture(str(work))
        running = InThread(lambda: capture.run(spool, on_complete=complete))
        criu = criu_dump(workload, work, "--leave-running", "--action-script", str(hook))
        running.join()
        assert criu.wait(30) == 0
        assert frozen_at[0] == frozen_at[1]
        workload.goes_on()
