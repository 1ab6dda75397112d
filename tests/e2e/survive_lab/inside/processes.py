"""Processes, threads, sessions, signals, credentials."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator

from conductor import claim, same

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
PR_GET_NO_NEW_PRIVS = 39


class Helper:
    """A child that does FIRST, and TELLs something as often as it is asked."""

    def __init__(
        self,
        *,
        first: Callable[[], object] = lambda: None,
        tell: Callable[[], object] | None = None,
    ) -> None:
        asks, self._ask = os.pipe()
        self._answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ask)
            os.close(self._answers)
            try:
                os.write(answer, repr(first()).encode() + b"\n")
                while os.read(asks, 1):
                    os.write(answer, repr((tell or identity)()).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(asks)
        os.close(answer)
        self._line()

    def ask(self) -> object:
        os.write(self._ask, b"?")
        return self._line()

    def _line(self) -> object:
        text = b""
        while not text.endswith(b"\n"):
            more = os.read(self._answers, 4096)
            if not more:
                raise AssertionError("the child is gone")
            text += more
        return eval(text)

    def end(self) -> int:
        os.close(self._ask)
        return os.waitpid(self.pid, 0)[1]


def identity() -> tuple[int, int, int, int]:
    return os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0)


def stat_state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.time() + seconds
    while not condition():
        if time.time() > until:
            raise AssertionError("it did not come to pass")
        time.sleep(0.01)


@claim
def process_tree() -> Iterator[None]:
    helpers = [Helper() for _ in range(3)]
    wanted = [helper.ask() for helper in helpers]
    mine = identity()
    while True:
        yield
        same(identity(), mine, "my identity")
        same([helper.ask() for helper in helpers], wanted, "the children's identities")
        same(helpers.pop().end(), 0, "a child's end")
        helpers.append(Helper())
        wanted[-1] = helpers[-1].ask()


@claim
def sessions_and_process_groups() -> Iterator[None]:
    leader = Helper(first=os.setsid)
    group = Helper(first=lambda: os.setpgid(0, 0))
    member = Helper(first=lambda: os.setpgid(0, group.pid))
    wanted = [helper.ask() for helper in (leader, group, member)]
    same(wanted[0][3], leader.pid)
    same(wanted[2][2], group.pid)
    while True:
        yield
        same([helper.ask() for helper in (leader, group, member)], wanted)


@claim
def orphan_belongs_to_pid_1() -> Iterator[None]:
    read, write = os.pipe()
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.close(write)
            while os.read(read, 1):
                os.write(answer, f"{os.getpid()} {os.getppid()}\n".encode())
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)

    def ask() -> bytes:
        os.write(write, b"?")
        return os.read(answers, 100)

    wait_until(lambda: ask().split()[1] == b"1")
    wanted = ask()
    while True:
        yield
        same(ask(), wanted)


@claim
def zombie_keeps_its_exit_status() -> Iterator[None]:
    while True:
        child = os.fork()
        if child == 0:
            os._exit(7)
        killed = os.fork()
        if killed == 0:
            signal.pause()
        os.kill(killed, signal.SIGUSR1)
        wait_until(lambda a=child, b=killed: stat_state(a) == stat_state(b) == "Z")
        yield
        same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7)
        same(os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]), -signal.SIGUSR1)


@claim
def stopped_process_stays_stopped() -> Iterator[None]:
    helper = Helper()
    wanted = helper.ask()
    while True:
        os.kill(helper.pid, signal.SIGSTOP)
        os.waitpid(helper.pid, os.WUNTRACED)
        yield
        same(stat_state(helper.pid), "T", "its state")
        os.kill(helper.pid, signal.SIGCONT)
        same(helper.ask(), wanted)


@claim
def threads_with_ids_and_names() -> Iterator[None]:
    local = threading.local()
    asked = [threading.Semaphore(0) for _ in range(8)]
    answered = threading.Semaphore(0)
    found: dict[int, tuple[int, str, int]] = {}

    def body(number: int) -> None:
        local.value = number * 11
        libc.prctl(PR_SET_NAME, b"thread-%d" % number)
        while True:
            asked[number].acquire()
            with open("/proc/thread-self/comm") as file:
                found[number] = (threading.get_native_id(), file.read().strip(), local.value)
            answered.release()

    for number in range(8):
        threading.Thread(target=body, args=(number,), daemon=True).start()

    def ask() -> dict[int, tuple[int, str, int]]:
        found.clear()
        for one in asked:
            one.release()
        for _ in asked:
            if not answered.acquire(timeout=60):
                raise AssertionError("a thread doesn't answer")
        return dict(found)

    wanted = ask()
    same(
        sorted(int(tid) for tid in os.listdir("/proc/self/task"))[1:],
        sorted(v[0] for v in wanted.values()),
    )
    while True:
        yield
        same(ask(), wanted)


@claim
def threads_have_own_signal_masks() -> Iterator[None]:
    masks: list[set[int]] = []
    ask, answered = threading.Semaphore(0), threading.Semaphore(0)

    def body() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGRTMIN + 3})
        while True:
            ask.acquire()
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            answered.release()

    threading.Thread(target=body, daemon=True).start()
    ask.release()
    answered.acquire()
    mine = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    while True:
        yield
        ask.release()
        answered.acquire(timeout=60)
        same(masks[-1], masks[0])
        same(signal.pthread_sigmask(signal.SIG_BLOCK, []), mine)


@claim
def blocked_system_calls_go_on() -> Iterator[None]:
    """A process sleeps in read(), in futex() and in nanosleep(); none of them may see an error."""
    read, write = os.pipe()
    while True:
        lock = threading.Lock()
        lock.acquire()
        results: list[object] = []
        began = time.time()

        def reads(results: list[object] = results) -> None:
            results.append(os.read(read, 10))

        def waits(lock: threading.Lock = lock, results: list[object] = results) -> None:
            results.append(lock.acquire())

        def sleeps(results: list[object] = results) -> None:
            results.append(libc.usleep(300_000))

        threads = [threading.Thread(target=body) for body in (reads, waits, sleeps)]
        for thread in threads:
            thread.start()
        yield
        os.write(write, b"at last")
        lock.release()
        for thread in threads:
            thread.join(60)
        same(sorted(map(str, results)), ["0", "True", "b'at last'"], "what the calls returned")
        assert time.time() - began >= 0.3


@claim
def signal_handlers_and_mask() -> Iterator[None]:
    caught: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 5):
        signal.signal(number, lambda n, _: caught.append(n))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        caught.clear()
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGRTMIN + 5})
        yield
        same(
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            {signal.SIGUSR1, signal.SIGRTMIN + 5},
            "the mask",
        )
        same(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        same(caught, [signal.SIGUSR2], "what was caught")


@claim
def pending_signals() -> Iterator[None]:
    number = signal.SIGRTMIN + 6
    signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGUSR1})
    while True:
        for value in (4711, 4712):
            libc.sigqueue(os.getpid(), int(number), ctypes.c_void_p(value))
        os.kill(os.getpid(), signal.SIGUSR1)
        yield
        same(signal.sigpending(), {number, signal.SIGUSR1}, "what is pending")
        for _ in range(2):
            info = signal.sigwaitinfo({number})
            same((info.si_pid, info.si_uid, info.si_code), (os.getpid(), os.getuid(), -1))
        same(signal.sigwait({signal.SIGUSR1}), signal.SIGUSR1)


@claim
def credentials() -> Iterator[None]:
    def become() -> None:
        os.setgroups([5, 20, 4000])
        os.setresgid(1001, 1002, 1003)
        os.setresuid(1000, 1000, 1000)

    def status() -> dict[str, str]:
        keys = (
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
        )
        with open("/proc/self/status") as file:
            pairs = (line.partition(":")[::2] for line in file)
            return {key: value.strip() for key, value in pairs if key in keys}

    user, root = Helper(first=become, tell=status), Helper(tell=status)
    wanted = user.ask(), root.ask()
    assert wanted[0]["Groups"] == "5 20 4000", wanted[0]
    assert wanted[1]["NoNewPrivs"] == "1"
    while True:
        yield
        same((user.ask(), root.ask()), wanted)


@claim
def resource_limits() -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 31))
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    wanted = {name: resource.getrlimit(getattr(resource, name)) for name in names}
    while True:
        yield
        same({name: resource.getrlimit(getattr(resource, name)) for name in names}, wanted)


@claim
def scheduling() -> Iterator[None]:
    os.nice(5)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    while True:
        yield
        same(os.getpriority(os.PRIO_PROCESS, 0), 5, "the nice value")
        same(os.sched_getscheduler(0), os.SCHED_BATCH, "the policy")


@claim
def cpu_affinity() -> Iterator[None]:
    one = {sorted(os.sched_getaffinity(0))[0]}
    os.sched_setaffinity(0, one)
    while True:
        yield
        same(os.sched_getaffinity(0), one)


@claim
def oom_score() -> Iterator[None]:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    while True:
        yield
        with open("/proc/self/oom_score_adj") as file:
            same(file.read().strip(), "500")


@claim
def process_attributes() -> Iterator[None]:
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGUSR1))
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_NAME, b"attributes")
    os.umask(0o027)

    def look() -> tuple[object, ...]:
        signal_number, reaper = ctypes.c_int(), ctypes.c_int()
        libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signal_number))
        libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(reaper))
        with open("/proc/self/comm") as file:
            name = file.read()
        mask = os.umask(0o027)
        return signal_number.value, reaper.value, name, mask

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def environment_and_command_line() -> Iterator[None]:
    def look() -> list[bytes]:
        found = []
        for name in ("environ", "cmdline", "auxv"):
            with open(f"/proc/self/{name}", "rb") as file:
                found.append(file.read())
        found.append(os.readlink("/proc/self/exe").encode())
        return found

    wanted = look()
    assert b"SURVIVE=1" in wanted[0].split(b"\0"), wanted[0]
    while True:
        yield
        same(look(), wanted)
        same(os.environ["SURVIVE"], "1")


@claim
def pidfd_of_a_child() -> Iterator[None]:
    helper = Helper()
    pidfd = os.pidfd_open(helper.pid)
    while True:
        yield
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        os.waitpid(helper.pid, os.WUNTRACED)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        helper.ask()
