"""Being tracked doesn't change a program, not even when whoever tracks it is killed at the worst moment."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import proc
from runtime.errors import Unsupported
from runtime.tracking import injection, ptrace, wp_async
from runtime.tracking.guard import Guard
from runtime.tracking.soft_dirty import standing
from runtime.tracking.wp_async import WpAsync
from tests import needs
from tests.contract.tracking_programs import Churn, Copy, SelfCheck, compiled
from tests.patience import patient

pytestmark = [
    needs.root,
    needs.compiler,
    pytest.mark.skipif(not wp_async.supported(), reason="no WP_ASYNC on this host"),
]

MODES = ["registers", "own-stack", "sleep", "poll", "read", "futex", "suspend", "calls"]
KILLS = int(os.environ.get("CKPT_KILLS", "480"))
"""Injectors killed at random, in all: `make test-kills` sets more."""
REPO = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    compiled("selfcheck", folder)
    compiled("churn", folder)
    return folder


@pytest.fixture(params=MODES)
def checking(request: pytest.FixtureRequest, programs: Path, tmp_path: Path) -> Iterator[SelfCheck]:
    running = SelfCheck(programs / "selfcheck", request.param, tmp_path)
    wait_for_rounds(running, 1)
    yield running
    running.close()


def wait_for_rounds(program: SelfCheck, count: int) -> None:
    """It does its work, and finds nothing wrong."""
    deadline = time.monotonic() + patient(60)
    until = program.rounds + count
    while program.rounds < until:
        assert program.fault() == ""
        assert time.monotonic() < deadline, "it doesn't go on"
        time.sleep(0.002)
    assert program.fault() == ""


def injector(action: Callable[[], object]) -> int:
    """A process that does ACTION, as an injector does; its pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def inject(pid: int) -> None:
    for _ in range(1000):
        try:
            os.close(injection.open_userfaultfd(pid))
            return
        except injection.Refused as why:
            # On its way back from an injection that was killed it has no room for another, for a moment.
            if not why.again:
                raise
            time.sleep(0.001)


def killed_at_step(pid: int, step: int) -> bool:
    """Whether an injector that kills itself at its STEP-th request to ptrace came so far."""

    def count() -> None:
        seen = 0
        real = ptrace._call

        def counted(*words: int) -> int:
            nonlocal seen
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*words)

        ptrace._call = counted
        inject(pid)

    return os.WIFSIGNALED(os.waitpid(injector(count), 0)[1])


def clean(pid: int) -> None:
    """Whatever killed injectors left there is found and closed."""
    deadline = time.monotonic() + patient(10)
    while injection.strays(pid):
        assert time.monotonic() < deadline
        with contextlib.suppress(injection.Refused):
            injection.close_strays(pid)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "TracerPid:\t0" in status


def test_a_program_is_as_it_was_after_many_injections(checking):
    for _ in range(40):
        inject(checking.pid)
    wait_for_rounds(checking, 2)
    assert checking.nudges == 0
    assert injection.strays(checking.pid) == set()
    assert not any("userfaultfd" in link for link in links(checking.pid))


def links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]


def test_an_injector_killed_at_any_step_leaves_the_program_unharmed(checking):
    for _ in range(2):
        step = 1
        while killed_at_step(checking.pid, step):
            assert checking.fault() == "", f"after step {step}"
            step += 1
        assert step > 15
    wait_for_rounds(checking, 2)
    assert checking.nudges == 0
    clean(checking.pid)
    wait_for_rounds(checking, 2)


_HEARS = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_a_signal_is_delivered_whose_tracer_is_killed_when_it_has_seen_it():
    words = [sys.executable, "-c", _HEARS]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == b"ready\n"

            def killed() -> None:
                interrupt = ptrace.interrupt

                def signalled(tid: int) -> None:
                    os.kill(tid, signal.SIGUSR1)
                    while proc.state(tid) != "t":
                        pass
                    interrupt(tid)

                ptrace.interrupt = signalled
                ptrace.resume = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                inject(program.pid)

            assert os.WIFSIGNALED(os.waitpid(injector(killed), 0)[1])
            assert select.select([program.stdout], [], [], patient(30))[0], "the signal is lost"
            assert program.stdout.readline() == b"heard\n"
        finally:
            program.kill()


@pytest.mark.timeout(120 + KILLS // 4)
def test_injectors_killed_at_random_leave_the_program_unharmed(checking):
    """Half of them at any moment, half just after they reach for the thread, which they hold for half a millisecond."""
    reading, writing = os.pipe()

    def forever() -> None:
        os.write(writing, b".")
        while True:
            inject(checking.pid)

    def reaching() -> None:
        real = ptrace._call

        def told(*words: int) -> int:
            ptrace._call = real
            os.write(writing, b".")
            return real(*words)

        ptrace._call = told
        while True:
            inject(checking.pid)

    chance = random.Random(KILLS)
    kills, tracing = -(-KILLS // len(MODES)), 0
    for number in range(kills):
        pid = injector(reaching if number % 2 else forever)
        os.read(reading, 1)
        until = time.perf_counter() + chance.random() * (0.0008 if number % 2 else 0.004)
        while time.perf_counter() < until:
            pass
        tracing += f"TracerPid:\t{pid}\n" in Path(f"/proc/{checking.pid}/status").read_text()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert checking.fault() == "", f"after {number} kills"
        if not number % 50:
            wait_for_rounds(checking, 1)
    wait_for_rounds(checking, 2)
    assert checking.nudges == 0
    clean(checking.pid)
    os.close(reading)
    os.close(writing)
    print(f"{kills} injectors killed, {tracing} of them while they held the thread")
    assert tracing, "they were killed when they did nothing: the test sees nothing"


def test_what_a_killed_injector_left_open_is_closed_by_the_next(programs, tmp_path):
    program = SelfCheck(programs / "selfcheck", "sleep", tmp_path)
    try:
        wait_for_rounds(program, 1)
        left = False
        for step in range(1, 20):
            killed_at_step(program.pid, step)
            wait_for_rounds(program, 1)
            left = left or bool(injection.strays(program.pid))
        assert left, "no step left anything: the test sees nothing"
        os.close(injection.open_userfaultfd(program.pid))
        assert not any("userfaultfd" in link for link in links(program.pid))
    finally:
        program.close()


_TRACKER = """
import sys
from runtime.tracking.wp_async import WpAsync
pid = int(sys.argv[1])
print("begins", flush=True)
while True:
    tracker = WpAsync()
    for _ in range(20):
        tracker.start([pid])
        tracker.dirty(pid)
        for process in tracker._processes.values():
            process.forget_memory()
    tracker.stop()
"""


def test_a_tracker_that_is_killed_leaves_nothing_of_itself(programs, tmp_path):
    """The injector outlives it by the injection that it is in."""
    program = SelfCheck(programs / "selfcheck", "futex", tmp_path)
    chance = random.Random(2)
    try:
        for _ in range(8):
            tracker = subprocess.Popen(
                [sys.executable, "-c", _TRACKER, str(program.pid)],
                stdout=subprocess.PIPE,
                cwd=REPO,
                start_new_session=True,
            )
            assert tracker.stdout is not None
            assert tracker.stdout.readline() == b"begins\n"
            time.sleep(0.1 + chance.random() * 0.2)
            os.killpg(tracker.pid, signal.SIGKILL)
            tracker.wait()
            tracker.stdout.close()
        wait_for_rounds(program, 10)
        deadline = time.monotonic() + patient(10)
        while any("userfaultfd" in link for link in links(program.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        program.close()


def test_the_guard_starts_another_injector_when_one_was_killed(programs, tmp_path):
    program = SelfCheck(programs / "selfcheck", "sleep", tmp_path)
    try:
        with Guard() as guard:
            for _ in range(3):
                os.close(guard.open(program.pid))
                assert guard.stopped_ns > 0
                assert guard.pid is not None
                os.kill(guard.pid, signal.SIGKILL)
        wait_for_rounds(program, 2)
    finally:
        program.close()


def test_a_stopped_and_a_traced_process_are_refused_and_all_dirty(programs):
    program = Churn(programs / "churn")
    try:
        os.kill(program.pid, signal.SIGSTOP)
        state = Path(f"/proc/{program.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        with Guard() as guard:
            with pytest.raises(Unsupported, match="stopped") as stopped:
                guard.open(program.pid)
            assert stopped.value.retry
            assert state.read_text().rpartition(")")[2].split()[0] == "T"
            os.kill(program.pid, signal.SIGCONT)
            with standing(program.pid), pytest.raises(Unsupported, match="traced"):
                guard.open(program.pid)
            tracker = WpAsync()
            try:
                with standing(program.pid):
                    copy = Copy(tracker, program.pid)
                    copy.follow()
                    assert tracker.why_all(program.pid)
                # Let go, it is tracked.
                copy.follow()
                assert tracker.why_all(program.pid) == ""
                assert copy.differences() == []
            finally:
                tracker.stop()
    finally:
        program.close()


_FILTERED = """
import os, sys
import pyseccomp
seccomp = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
seccomp.add_rule(pyseccomp.ERRNO(1), "userfaultfd")
seccomp.load()
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_program_whose_filter_forbids_userfaultfd_is_tracked_nevertheless(programs, tmp_path):
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(24))
    words = [sys.executable, "-c", _FILTERED, str(programs / "selfcheck"), "poll", str(counter)]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + patient(30)
            while counter.read_bytes()[:8] == bytes(8):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for step in range(1, 20):
                killed_at_step(process.pid, step)
            os.close(injection.open_userfaultfd(process.pid))
            assert "Seccomp:\t2" in Path(f"/proc/{process.pid}/status").read_text()
            assert process.poll() is None
        finally:
            process.kill()


def test_all_threads_stand_and_go_on(programs, tmp_path):
    """What soft-dirty tracking needs; it works on kernels without such bits, too."""
    program = SelfCheck(programs / "selfcheck", "futex", tmp_path)
    try:
        wait_for_rounds(program, 1)
        for _ in range(20):
            with standing(program.pid):
                before = program.rounds
                states = {
                    Path(f"/proc/{program.pid}/task/{tid}/stat").read_text().rpartition(")")[2][1]
                    for tid in os.listdir(f"/proc/{program.pid}/task")
                }
                assert states == {"t"}
                assert program.rounds == before
            wait_for_rounds(program, 1)
    finally:
        program.close()
