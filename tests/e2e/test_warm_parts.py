"""The parts of a warm move, together, with the real CRIU and a program that checks each byte of its memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from images.pages import LAZY, PRESENT, parse_page_map
from images.spool import Spool
from runtime.criu.page_server import PageServer
from runtime.errors import SystemFault
from runtime.pager import privilege
from runtime.pager.client import Pager
from runtime.veil.carry import carryable
from runtime.veil.veil import Veil
from tests import needs, runtag
from tests.e2e.warm_lab.lab import Hog, started, until
from tests.e2e.warm_lab.move import dumped, moved, task_number
from tests.hosts_own import unprivileged_userfaultfd

PAGE = 4096
pytestmark = [needs.root, needs.criu, needs.pycriu, needs.compiler]


@pytest.fixture
def lab() -> Iterator[Path]:
    """A short path: CRIU cuts longer socket paths off. Others must be able to enter: a container's user."""
    with tempfile.TemporaryDirectory(prefix=f"ckpt-{runtag.TAG}-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def assert_good(hog: Hog, processes: int = 1) -> None:
    verdicts = hog.check()
    assert len(verdicts) == processes
    assert [verdict.bad for verdict in verdicts] == [0] * processes, verdicts


def assert_goes_on(hog: Hog, processes: int = 1) -> None:
    """It works on its memory, which is right, and that of a forked child as well."""
    before = hog.rounds()
    until(lambda: hog.rounds() > before)
    assert_good(hog, processes)
    assert [verdict.bad for verdict in hog.check(signal.SIGUSR2)] == [0] * processes


# --- the commit -------------------------------------------------------------------------------------


def test_close_kills_the_source(lab: Path) -> None:
    with started(lab) as hog, Spool() as spool, Veil(carryable, lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            assert not dump.failed, dump.text()
            dump.server.close_and_kill()
            assert dump.process.wait(30) == 0, dump.text()
        assert not hog.alive


def test_a_reset_resumes_the_source(lab: Path) -> None:
    with started(lab, threads=2) as hog, Spool() as spool, Veil(carryable, lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            assert not dump.failed, dump.text()
            dump.server.drop_to_resume()
            assert dump.process.wait(30) == 1
        assert_goes_on(hog)


def test_killing_criu_resumes_the_source(lab: Path) -> None:
    with started(lab, threads=2) as hog, Spool() as spool, Veil(carryable, lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            dump.process.kill()
            with pytest.raises(SystemFault):
                dump.process.wait(30)
                dump.server.close_and_kill()
        assert_goes_on(hog)


HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.criu.page_server import PageServer
server = PageServer()
os.set_inheritable(server.inherit, True)
print(server.inherit, flush=True)
sys.stdin.readline()
"""


def test_the_session_of_a_process_that_is_killed_is_reset() -> None:
    """Not ended in good order, which CRIU would take for success."""
    repo = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, repo], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        number = int(holder.stdout.readline())
        pidfd = os.pidfd_open(holder.pid)
        from runtime.syscalls import pidfd_getfd

        theirs = pidfd_getfd(pidfd, number)
        os.close(pidfd)
        holder.kill()
        holder.wait()
        try:
            with pytest.raises(ConnectionResetError):
                os.read(theirs, 32)
        finally:
            os.close(theirs)


def test_no_answer_is_an_error() -> None:
    with PageServer() as server, pytest.raises(SystemFault):
        server.started()  # nobody has the other end
        server.close_and_kill()


# --- the veil ---------------------------------------------------------------------------------------


def test_hidden_ranges_are_in_no_image(lab: Path) -> None:
    with started(lab, children=1) as hog, Spool() as spool, Veil(carryable, lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            assert not dump.failed, dump.text()
            assert set(veil.hidden) >= set(hog.pids())  # CRIU tries the call on itself, too
            for pid in hog.pids():
                name = f"pagemap-{task_number(pid)}.img"
                page_map = parse_page_map(spool.read(name), name)
                hidden = veil.hidden[pid]
                assert sum(end - start for start, end in hidden) > 16 << 20
                for run in page_map.runs:
                    for start, end in hidden:
                        assert run.end <= start or run.address >= end
                assert page_map.bytes_of(PRESENT) > 0
                assert page_map.bytes_of(LAZY) < 1 << 20
        assert_good(hog, 2)


def test_nothing_hidden_leaves_criu_alone(lab: Path) -> None:
    with started(lab) as hog, Spool() as spool, Veil(lambda pid: [], lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            assert not dump.failed, dump.text()
            page_map = parse_page_map(spool.read("pagemap-1.img"), "pagemap-1.img")
            assert page_map.bytes_of(LAZY) > 14 << 20
        assert_good(hog)


def test_not_knowing_what_to_hide_fails_the_dump_and_the_source_runs_on(lab: Path) -> None:
    def hide(pid: int) -> Sequence[tuple[int, int]]:
        raise LookupError(pid)

    with started(lab) as hog, Spool() as spool, Veil(hide, lab) as veil:
        with dumped(hog, lab, spool, veil) as dump:
            assert dump.process.wait(30) == 1
        assert isinstance(veil.fault, LookupError)
        assert_goes_on(hog)


# A program with random pages, whose numbers it tells; it looks for them itself when it is told to.
_POPULATED = """
import array, ctypes, mmap, os, random, struct, sys
PAGE, pages = 4096, 256
dice = random.Random(int(sys.argv[1]))
memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
populated = sorted(dice.sample(range(pages), 90))
for page in populated:
    memory[page * PAGE] = 1
print(os.getpid(), base, *populated, flush=True)
sys.stdin.readline()
fd = os.open(f"/proc/{os.getpid()}/pagemap", os.O_RDONLY)
"""
SCANNER = (
    _POPULATED
    + """
SCAN = 0xC0606610
libc = ctypes.CDLL(None, use_errno=True)
found, at = [], base
while at < base + pages * PAGE:
    room, most = dice.choice((1, 2, 3, 200)), dice.choice((0, 1, 5, 300))
    vector = (ctypes.c_uint64 * (3 * room))()
    end = base + pages * PAGE
    wanted = 1 << 3 | 1 << 4
    raw = struct.pack("=12Q", 96, 0, at, end, 0, ctypes.addressof(vector), room, most, 0, 0, wanted, wanted)
    argument = ctypes.create_string_buffer(raw, 96)
    count = libc.ioctl(fd, ctypes.c_ulong(SCAN), argument)
    assert count >= 0, os.strerror(ctypes.get_errno())
    assert count <= room
    for n in range(count):
        start, stop = (vector[3 * n] - base) // PAGE, (vector[3 * n + 1] - base) // PAGE
        found += range(start, stop)
    after = struct.unpack_from("=Q", argument.raw, 32)[0]
    assert at < after <= end, (at, after)
    at = after
print(*found)
"""
)


# As SCANNER, where the kernel has no such call: the entries themselves, some at a time.
READER = (
    _POPULATED
    + """
PRESENT = 1 << 63
found, at = [], 0
while at < pages:
    count = min(dice.choice((1, 2, 7, 300)), pages - at)
    entries = array.array("Q", os.pread(fd, count * 8, (base // PAGE + at) * 8))
    assert len(entries) == count
    found += [at + n for n, entry in enumerate(entries) if entry & PRESENT]
    at += count
print(*found)
"""
)


@pytest.mark.parametrize(
    ("program", "seed"),
    [pytest.param(SCANNER, n, marks=needs.kernel("6.7")) for n in range(8)]
    + [(READER, n) for n in range(4)],
)
def test_a_program_behind_the_veil_sees_all_but_what_is_hidden(
    lab: Path, program: str, seed: int
) -> None:
    """However little room it offers for the answer, and however many pages it wants at once."""
    hidden: list[tuple[int, int]] = []
    dice = random.Random(seed)
    with Veil(lambda pid: hidden, lab) as veil:
        with subprocess.Popen(
            veil.wrap([sys.executable, "-c", program, str(seed)]),
            pass_fds=veil.pass_fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            veil.started()
            assert running.stdout is not None
            pid, base, *populated = map(int, running.stdout.readline().split())
            assert pid == running.pid
            pages: set[int] = set()
            for start in sorted(dice.sample(range(0, 256, 8), dice.randrange(1, 20))):
                length = dice.randrange(1, 9)
                hidden.append((base + start * PAGE, base + (start + length) * PAGE))
                pages |= set(range(start, start + length))
            answer, _ = running.communicate("\n")
            assert running.returncode == 0
        assert [int(page) for page in answer.split()] == [p for p in populated if p not in pages]
        assert set(veil.hidden) == {pid}


# --- all of it --------------------------------------------------------------------------------------


def test_a_program_moves_and_every_byte_is_right(lab: Path) -> None:
    with started(lab, mebibytes=32) as hog, moved(hog, lab) as move:
        assert not hog.alive
        assert move.status.dropped == move.status.missing == 0
        assert move.status.placed > 28 << 20
        assert move.hidden > 32 << 20 and move.fetched < 1 << 20
        assert_goes_on(move.hog)


def test_threads_and_processes_move(lab: Path) -> None:
    with started(lab, threads=4, children=2) as hog, moved(hog, lab) as move:
        assert move.status.tasks == 3 and move.status.dropped == 0
        assert_goes_on(move.hog, processes=3)


def test_a_container_in_a_user_namespace_moves(lab: Path) -> None:
    before = unprivileged_userfaultfd()
    with (
        started(lab, threads=2, children=1, base=1 << 20) as hog,
        privilege.allowed(),
        moved(hog, lab) as move,
    ):
        assert move.status.fork_events
        assert_goes_on(move.hog, processes=2)
    assert unprivileged_userfaultfd() == before


def test_a_pager_whose_worker_is_killed_moves_it_all_the_same(lab: Path) -> None:
    workers: list[int] = []

    def kill_now_and_then(pager: Pager) -> None:
        """A first time before the restore, then while it fills."""
        for _ in range(2):
            workers.append(pager.status().worker)
            os.kill(workers[-1], signal.SIGKILL)
            until(lambda: pager.status().worker != workers[-1])

    with (
        started(lab, mebibytes=32, threads=2) as hog,
        moved(hog, lab, before_run=kill_now_and_then) as move,
    ):
        assert move.status.worker not in workers
        assert move.status.dropped == 0
        assert_goes_on(move.hog)


def test_it_moves_twice(lab: Path) -> None:
    """What was restored lazily is as good as new."""
    (lab / "again").mkdir()
    with started(lab, children=1) as hog, moved(hog, lab) as move:
        assert_good(move.hog, 2)
        (lab / "again" / "root").symlink_to(lab / "root")
        with moved(move.hog, lab / "again") as second:
            assert_goes_on(second.hog, processes=2)
