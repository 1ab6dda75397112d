"""Pages that a task had written to private mappings of files are as they came, those of zeros too."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.errors import SystemFault
from runtime.pagecache.place import place
from runtime.pagecache.store import PageStore
from runtime.pagesource.read import TaskReader
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.pagesource.wire import COPIES_FROM
from runtime.tracking.population import copies, opened
from tests import needs

pytestmark = needs.root
PAGE = 4096
PAGES = 4096


@contextmanager
def mapping(path: Path) -> Iterator[tuple[mmap.mmap, int]]:
    """PATH, mapped privately; and where."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(
            file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    yield mapped, ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def frozen_child() -> int:
    """A copy of this process that does nothing."""
    pid = os.fork()
    if not pid:
        signal.pause()
    return pid


def test_what_was_written_is_put_over_the_file_s_pages(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * PAGE * PAGES)
    with mapping(path) as (mapped, at):
        before = frozen_child()  # has the file's pages only
        for number in range(0, PAGES, 2):
            page = b"%d" % number * 8 if number % 8 else bytes(8)
            mapped[number * PAGE : (number + 1) * PAGE] = page.ljust(PAGE, b"\0")
        read, write = os.pipe()
        try:
            with PageStore() as store, opened(os.getpid()) as pagemap:
                receiver = PageReceiver(read, store)
                arriving = threading.Thread(target=receiver.until_mark)
                arriving.start()
                wanted = copies(pagemap, [(at, at + PAGE * PAGES)])
                with PageSender(write) as sender, TaskReader(os.getpid()) as reader:
                    assert sender.send(COPIES_FROM + 7, reader, wanted) == PAGES // 2
                    sender.mark()
                    arriving.join()
                    # One that is taken back again is the file's.
                    arriving = threading.Thread(target=receiver.until_mark)
                    arriving.start()
                    sender.gone(COPIES_FROM + 7, [(at, at + PAGE)])
                    sender.mark()
                    arriving.join()
                assert place(before, store[COPIES_FROM + 7]) == (PAGES // 2 - 1) * PAGE
                store[7].hold(1 << 20, (1 << 20) + PAGE)
                with pytest.raises(SystemFault, match="placing pages of process"):
                    place(before, store[7])
            with opened(before) as pagemap:
                assert copies(pagemap, [(at, at + PAGE * PAGES)]) == wanted[1:]
            with open(f"/proc/{before}/mem", "rb", buffering=0) as memory:
                memory.seek(at)
                assert memory.read(PAGE) == b"f" * PAGE
                for start in range(at + PAGE, at + PAGES * PAGE, 1 << 20):
                    memory.seek(start)
                    size = min(1 << 20, at + PAGES * PAGE - start)
                    assert memory.read(size) == mapped[start - at : start - at + size]
        finally:
            os.kill(before, signal.SIGKILL)
            os.waitpid(before, 0)
            os.close(read)
            os.close(write)
    assert path.read_bytes() == b"f" * PAGE * PAGES
