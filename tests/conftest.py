"""What every test gets: needs asked before it runs, leaks looked for afterwards, a root of its own.

- `needs` markers (tests/needs.py) are checked before any fixture is set up.
- After each test nothing new may be there (tests/leaks.py): in tests/e2e on the whole machine,
  elsewhere in this process. `@pytest.mark.may_leak("threads")` excuses one kind.
- CI=true turns a skip for an unlisted reason into a failure (tests/ci_may_skip.txt), and makes the
  leak check blame a test for anything new on the machine; CKPT_STRICT_LEAKS=1 does only the latter.
- With several workers (pytest -n) each has a tag of its own (tests/runtag.py) and blames its tests
  only for what carries it; what is new on the machine then fails the whole run at its end.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from runtime import cgroups
from tests import leaks, needs, runtag, sweep
from tests.patience import SLOWNESS, patient

IN_CI = os.environ.get("CI") == "true"
STRICT_LEAKS = IN_CI or os.environ.get("CKPT_STRICT_LEAKS") == "1"
E2E = Path(__file__).resolve().parent / "e2e"

# Counted, not random: a random part could look like another run's tag.
_root_names = (Path(f"/tmp/ckpt-{runtag.TAG}-{number}") for number in itertools.count(1))
_failed = pytest.StashKey[bool]()
_at_start = pytest.StashKey[leaks.Snapshot]()


def pytest_configure(config: pytest.Config) -> None:
    os.environ[runtag.VARIABLE] = runtag.TAG
    # A shell starts what runs in the background with SIGINT ignored, and so would every child here:
    # what tests interrupt would not notice.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that run tests for a pytest -n."""
    return hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Take away what runs left that were killed; their owners are dead."""
    if os.geteuid() != 0 or session.config.option.collectonly or is_worker(session.config):
        return
    for tag in sweep.dead_runs():
        for line in sweep.sweep(tag):
            print(f"swept what an aborted run left: {line}")
    if STRICT_LEAKS and getattr(session.config.option, "numprocesses", None):
        session.config.stash[_at_start] = leaks.look(set(leaks.EVERYTHING) - set(leaks.LOCAL))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With several workers: hold against the whole run what is new on the machine."""
    if os.geteuid() == 0 and not is_worker(session.config):
        cgroups.remove_monitors(cgroups.detect())
    before = session.config.stash.get(_at_start, None)
    if before is not None and (new := leaks.new_since(before, strict=True)):
        print(f"\nleft behind on the machine:\n{leaks.describe(new)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's own time limit is for a machine like the developers', too; --timeout is whoever gives it."""
    if SLOWNESS != 1:
        for item in items:
            if marker := item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(patient(*marker.args)), append=False)


# --- needs and skips ------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        if reason := needs.missing(*marker.args):
            pytest.skip(reason)


def may_skip(reason: str) -> bool:
    """Whether tests/ci_may_skip.txt lists the reason."""
    lines = (Path(__file__).parent / "ci_may_skip.txt").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return any(fnmatch.fnmatchcase(reason, pattern) for pattern in patterns)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    reason = reason.removeprefix("Skipped: ")
    if not may_skip(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow for this reason: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


# --- leaks ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind. Set up first, so it looks last."""
    everything = E2E in request.path.parents and os.geteuid() == 0
    kinds = set(leaks.EVERYTHING if everything else leaks.LOCAL)
    for marker in request.node.iter_markers("may_leak"):
        kinds -= set(marker.args)
    before = leaks.look(kinds)
    yield
    if new := leaks.new_since(before, strict=STRICT_LEAKS and not is_worker(request.config)):
        pytest.fail(f"left behind:\n{leaks.describe(new)}", pytrace=False)


@pytest.fixture
def ckpt_root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh ckpt root: /tmp/ckpt-t1234-7, short because it will hold Unix sockets.

    What the test leaves in files goes with it. Processes and mounts it has to end itself: they are
    taken away as well, but then the test fails, unless it has failed already.
    """
    root = next(path for path in _root_names if not path.exists())
    root.mkdir(mode=0o700)
    yield root
    found = sweep.stop_processes_using(root) + sweep.clear(root)
    if found and not request.node.stash.get(_failed, False):
        lines = "\n".join(f"  {line}" for line in found)
        pytest.fail(f"still there when the test ended:\n{lines}", pytrace=False)
