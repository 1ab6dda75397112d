"""What every cgroup layout does alike: this host's real one, its v2 tree alone, and a v2 stand-in.

The stand-in has all controllers and no processes; the real v2 tree of a hybrid host has processes
and next to no controllers. Together they show v2 where no pure v2 host is to be had; on one, "real"
is it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.cgroups.fake import FakeV2
from runtime.cgroups.files import CgroupFs
from runtime.cgroups.layout import Layout, Tree
from runtime.cgroups.resources import Resources
from runtime.errors import BadInput, Conflict, NotFound, NotPermitted, Unsupported, WrongState
from tests import needs, runtag

PARENT = f"/ckpt-{runtag.TAG}"
MIB = 1 << 20


def _fake(tmp_path: Path) -> Layout:
    root = tmp_path / "cgroup"
    root.mkdir()
    fs = FakeV2(str(root))
    controllers = frozenset(fs.read(f"{root}/cgroup.controllers").split())
    return Layout("v2", (Tree(2, str(root), controllers),), fs=fs)


def _real(tmp_path: Path) -> Layout:
    return cgroups.detect()


def _real_v2_alone(tmp_path: Path) -> Layout:
    tree = cgroups.detect().unified
    assert tree is not None, "this host has no cgroup v2 tree"
    return Layout("v2", (tree,))


_MARKS = [needs.root, needs.cgroup_write]
_FAKE = pytest.param(_fake, id="fake-v2")
_REAL = pytest.param(_real, id="real", marks=_MARKS)
_REAL_V2 = pytest.param(_real_v2_alone, id="real-v2-alone", marks=_MARKS)

# For tests of limits on memory, CPUs and processes, which any host of ours can keep.
with_controllers = pytest.mark.parametrize("layout", [_FAKE, _REAL], indirect=True)


@pytest.fixture(params=[_FAKE, _REAL, _REAL_V2])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layout]:
    make: Callable[[Path], Layout] = request.param
    found = make(tmp_path)
    root_files = [f"{t.mount}/cgroup.subtree_control" for t in found.trees if t.version == 2]
    before = {file: set(found.fs.read(file).split()) for file in root_files}
    yield found
    if isinstance(found.fs, FakeV2):
        return
    assert not any(os.path.exists(tree.path(PARENT)) for tree in found.usable), "left behind"
    for file, had in before.items():
        for controller in set(found.fs.read(file).split()) - had:
            found.fs.write(file, f"-{controller}")


@pytest.fixture
def cgroup(layout: Layout) -> Iterator[cgroups.Cgroup]:
    made = cgroups.create(layout, PARENT, "web")
    yield made
    made.remove()


class Sleeper:
    """A real process for a real cgroup, a number for the stand-in."""

    def __init__(self, layout: Layout) -> None:
        self.real = not isinstance(layout.fs, FakeV2)
        self._process = subprocess.Popen(["sleep", "600"]) if self.real else None
        self.pid = self._process.pid if self._process else 4711

    def wait(self) -> int | None:
        return self._process.wait(10) if self._process else None

    def end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def sleeper(layout: Layout) -> Iterator[Sleeper]:
    process = Sleeper(layout)
    yield process
    process.end()


# ---------------------------------------------------------------- making and removing


def test_create_makes_it_in_every_tree_and_remove_leaves_nothing(layout: Layout) -> None:
    cgroup = cgroups.create(layout, PARENT, "web")
    assert all(os.path.isdir(path) for path in cgroup.paths().values())
    assert len(cgroup.paths()) == len(layout.usable)
    cgroup.remove()
    assert not cgroup.exists()
    assert not any(os.path.exists(tree.path(PARENT)) for tree in layout.usable)


def test_what_is_there_is_not_made_again(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    with pytest.raises(Conflict, match="there already"):
        cgroups.create(layout, PARENT, "web")
    assert cgroup.exists()


def test_open_finds_it(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    assert cgroups.open(layout, PARENT, "web").paths() == cgroup.paths()
    with pytest.raises(NotFound):
        cgroups.open(layout, PARENT, "db")


def test_the_parent_stays_while_a_sibling_is_in_it(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    cgroups.create(layout, PARENT, "db").remove()
    assert cgroup.exists()


def test_removing_what_is_gone_is_no_error(layout: Layout) -> None:
    cgroup = cgroups.create(layout, PARENT, "web")
    cgroup.remove()
    cgroup.remove()


def test_remove_takes_children_that_the_container_made(
    layout: Layout, cgroup: cgroups.Cgroup
) -> None:
    for path in cgroup.paths().values():
        layout.fs.mkdir(f"{path}/inner")
        layout.fs.mkdir(f"{path}/inner/most")
    cgroup.remove()
    assert not cgroup.exists()


def test_remove_refuses_while_something_runs_in_it(
    cgroup: cgroups.Cgroup, sleeper: Sleeper
) -> None:
    cgroup.add(sleeper.pid)
    with pytest.raises(WrongState, match=str(sleeper.pid)):
        cgroup.remove(timeout=0.05)
    assert cgroup.pids() == [sleeper.pid]
    cgroup.kill()
    sleeper.wait()


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("/", "ckpt"),
        ("", "ckpt"),
        ("/ckpt", ""),
        ("/ckpt", ".."),
        ("/ckpt/..", "x"),
        ("/ckpt", "a/b"),
        ("/ckpt", "a b"),
        ("/ckpt", "a\n"),
        ("/system.slice", "x"),
        ("ckpt", "x"),
        ("/ckpt//", "x/"),
    ],
)
def test_names_that_could_reach_elsewhere_are_refused(
    layout: Layout, parent: str, name: str
) -> None:
    with pytest.raises(BadInput, match="naming a cgroup"):
        cgroups.create(layout, parent, name)


def test_a_cgroup_without_our_mark_is_never_acted_on(layout: Layout) -> None:
    foreign = f"/ckpt-{runtag.TAG}-foreign"
    tree = layout.usable[0]
    layout.fs.mkdir(tree.path(foreign))
    layout.fs.mkdir(tree.path(f"{foreign}/web"))
    try:
        with pytest.raises(NotPermitted, match="mark"):
            cgroups.open(layout, foreign, "web")
        cgroup = cgroups.Cgroup(layout, f"{foreign}/web")
        for act in (cgroup.kill, cgroup.freeze, cgroup.thaw, cgroup.remove):
            with pytest.raises(NotPermitted, match="mark"):
                act()
        with pytest.raises(NotPermitted, match="mark"):
            cgroup.apply(Resources())
        with pytest.raises(NotPermitted, match="mark"):
            cgroups.create(layout, foreign, "mine")
        assert os.path.isdir(tree.path(f"{foreign}/web"))
        assert not os.path.isdir(tree.path(f"{foreign}/mine"))
    finally:
        layout.fs.rmdir(tree.path(f"{foreign}/web"))
        layout.fs.rmdir(tree.path(foreign))


# ---------------------------------------------------------------- processes


def test_writing_to_the_enter_paths_puts_a_process_into_every_tree(
    layout: Layout, cgroup: cgroups.Cgroup, sleeper: Sleeper
) -> None:
    for path in cgroup.enter_paths():
        layout.fs.write(path, str(sleeper.pid))
    for directory in cgroup.paths().values():
        assert layout.fs.read(f"{directory}/cgroup.procs").split() == [str(sleeper.pid)]
    if sleeper.real:
        lines = Path(f"/proc/{sleeper.pid}/cgroup").read_text().splitlines()
        inside = [line for line in lines if line.endswith(f":{cgroup.path}")]
        assert len(inside) == len(layout.usable)
    cgroup.kill()
    sleeper.wait()


def test_freeze_stops_and_thaw_goes_on(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    cgroup.add(sleeper.pid)
    assert not cgroup.frozen()
    cgroup.freeze()
    assert cgroup.frozen()
    cgroup.thaw()
    assert not cgroup.frozen()
    cgroup.kill()
    sleeper.wait()


def test_who_enters_after_a_freeze_was_begun_stops_too(
    cgroup: cgroups.Cgroup, sleeper: Sleeper
) -> None:
    cgroup.begin_freeze()
    cgroup.add(sleeper.pid)
    cgroup.freeze()
    assert cgroup.frozen()
    cgroup.thaw()
    assert not cgroup.frozen()
    cgroup.kill()
    sleeper.wait()


def test_an_empty_cgroup_can_be_frozen(cgroup: cgroups.Cgroup) -> None:
    cgroup.freeze()
    assert cgroup.frozen()
    cgroup.thaw()


def test_kill_ends_everything_in_it_and_nothing_else(
    layout: Layout, cgroup: cgroups.Cgroup, sleeper: Sleeper
) -> None:
    bystander = Sleeper(layout)
    try:
        neighbour = cgroups.create(layout, PARENT, "db")
        neighbour.add(bystander.pid)
        cgroup.add(sleeper.pid)
        if not sleeper.real:
            layout.fs.write(neighbour.enter_paths()[0], "4712")
        cgroup.kill()
        if sleeper.real:
            assert sleeper.wait() == -9
            assert neighbour.pids() == [bystander.pid]
        assert cgroup.pids() == []
        assert neighbour.pids() != []
        neighbour.kill()
    finally:
        bystander.end()
        neighbour.remove()


def test_kill_ends_what_is_frozen(cgroup: cgroups.Cgroup, sleeper: Sleeper) -> None:
    cgroup.add(sleeper.pid)
    cgroup.freeze()
    cgroup.kill()
    sleeper.wait()
    cgroup.remove()


# ---------------------------------------------------------------- limits

WISHES: dict[str, dict[str, Any]] = {
    "memory": {"memory": {"limit": 64 * MIB}},
    "memory and swap": {"memory": {"limit": 64 * MIB, "swap": 96 * MIB}},
    "no swap": {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}},
    "reservation": {"memory": {"reservation": 32 * MIB}},
    "shares": {"cpu": {"shares": 2048}},
    "quota": {"cpu": {"quota": 50_000, "period": 200_000}},
    "burst": {"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000}},
    "idle": {"cpu": {"idle": 1}},
    "cpuset": {"cpu": {"cpus": "0"}},
    "pids": {"pids": {"limit": 33}},
    "io weight": {"blockIO": {"weight": 500}},
    "huge pages": {"hugepageLimits": [{"pageSize": "2MB", "limit": 8 * MIB}]},
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
def test_what_is_applied_is_read_back_or_refused_by_name(
    layout: Layout, cgroup: cgroups.Cgroup, wish: dict[str, Any]
) -> None:
    wanted = Resources.from_oci(wish)
    problems = cgroups.check(layout, wanted)
    if problems:
        with pytest.raises(Unsupported, match=problems[0].field):
            cgroup.apply(wanted)
        return
    cgroup.apply(wanted)
    now = cgroup.read()
    if "shares" in wish.get("cpu", {}):
        # v2's scale is coarser: the same weight, perhaps another number for it.
        assert now.cpu.shares == pytest.approx(2048, rel=0.02)
        return
    expected = dict(wish)
    got = now.to_oci()
    got["hugepageLimits"] = [h for h in got.get("hugepageLimits", []) if h["pageSize"] == "2MB"]
    assert {key: got.get(key) for key in expected} == expected


def test_a_fresh_cgroup_has_no_limits(cgroup: cgroups.Cgroup) -> None:
    now = cgroup.read().to_oci()
    # Some kernels read "no limit" of huge pages back as a number below the unlimited one.
    now.pop("hugepageLimits", None)
    assert now == {}


@with_controllers
def test_update_changes_what_it_names_and_keeps_the_rest(
    layout: Layout, cgroup: cgroups.Cgroup
) -> None:
    memory = {"limit": 64 * MIB, "swap": 96 * MIB}
    first = {"memory": memory, "cpu": {"quota": 50_000}, "pids": {"limit": 10}}
    cgroup.apply(Resources.from_oci(first))
    now = cgroup.update(Resources.from_oci({"cpu": {"quota": 70_000}}))
    assert (now.cpu.quota, now.pids) == (70_000, 10)
    assert (now.memory.limit, now.memory.swap) == (64 * MIB, 96 * MIB)


@with_controllers
def test_update_raises_and_lowers_memory_and_swap_in_the_order_that_the_kernel_wants(
    layout: Layout, cgroup: cgroups.Cgroup
) -> None:
    cgroup.apply(Resources.from_oci({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}))
    for limit, swap in ((128, 192), (32, 48), (256, 256), (-1, -1)):
        both = {"limit": limit * MIB if limit > 0 else -1, "swap": swap * MIB if swap > 0 else -1}
        memory = cgroup.update(Resources.from_oci({"memory": both})).memory
        expected = (None, None) if limit < 0 else (both["limit"], both["swap"])
        assert (memory.limit, memory.swap) == expected


@with_controllers
def test_memory_alone_keeps_the_sum_with_swap(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    cgroup.apply(Resources.from_oci({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}}))
    memory = cgroup.update(Resources.from_oci({"memory": {"limit": 80 * MIB}})).memory
    assert (memory.limit, memory.swap) == (80 * MIB, 96 * MIB)


@with_controllers
def test_memory_above_the_sum_with_swap_is_refused_and_nothing_changes(
    layout: Layout, cgroup: cgroups.Cgroup
) -> None:
    cgroup.apply(Resources.from_oci({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}}))
    with pytest.raises(BadInput, match=r"memory\.swap"):
        cgroup.update(Resources.from_oci({"memory": {"limit": 100 * MIB}}))
    assert cgroup.read().memory.limit == 64 * MIB


@with_controllers
def test_quota_below_an_earlier_burst_and_lifted_again(
    layout: Layout, cgroup: cgroups.Cgroup
) -> None:
    cgroup.apply(Resources.from_oci({"cpu": {"quota": 50_000, "period": 100_000, "burst": 40_000}}))
    cpu = cgroup.update(Resources.from_oci({"cpu": {"quota": 20_000, "burst": 10_000}})).cpu
    assert (cpu.quota, cpu.burst) == (20_000, 10_000)
    with pytest.raises(BadInput, match=r"cpu\.burst"):
        cgroup.update(Resources.from_oci({"cpu": {"quota": 5_000}}))
    cpu = cgroup.update(Resources.from_oci({"cpu": {"quota": -1}})).cpu
    assert (cpu.quota, cpu.burst) == (None, None)


@with_controllers
def test_after_idle_the_shares_are_back(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    cgroup.apply(Resources.from_oci({"cpu": {"idle": 1}}))
    cpu = cgroup.update(Resources.from_oci({"cpu": {"idle": 0, "shares": 512}})).cpu
    assert cpu.idle is None
    assert cpu.shares == pytest.approx(512, rel=0.02)


@with_controllers
def test_a_failed_update_puts_back_what_it_wrote(
    layout: Layout, cgroup: cgroups.Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file refuses: the first has its old value again."""
    cgroup.apply(Resources.from_oci({"cpu": {"quota": 50_000}, "pids": {"limit": 10}}))
    write = CgroupFs.write if not isinstance(layout.fs, FakeV2) else FakeV2.write

    def refuse_pids(self: CgroupFs, path: str, text: str) -> None:
        if path.endswith("pids.max") and text == "20":
            raise OSError(22, "Invalid argument", path)
        write(self, path, text)  # type: ignore[arg-type]

    monkeypatch.setattr(type(layout.fs), "write", refuse_pids)
    with pytest.raises(BadInput, match=r"pids\.limit"):
        cgroup.update(Resources.from_oci({"cpu": {"quota": 70_000}, "pids": {"limit": 20}}))
    now = cgroup.read()
    assert (now.cpu.quota, now.pids) == (50_000, 10)


@with_controllers
def test_a_cpu_that_is_not_here_is_named_before_anything_is_made(layout: Layout) -> None:
    wish = Resources.from_oci({"cpu": {"cpus": "0,4000"}})
    problems = cgroups.check(layout, wish)
    assert problems, "nobody has 4000 processors"
    assert "cpu.cpus" in str(problems[0])
    with pytest.raises(Unsupported, match=r"cpu\.cpus"):
        cgroups.require(layout, wish)
    assert not any(os.path.exists(tree.path(PARENT)) for tree in layout.usable)


def test_a_disk_that_is_not_here_is_named(layout: Layout) -> None:
    rate = [{"major": 4000, "minor": 1, "rate": MIB}]
    problems = cgroups.check(
        layout, Resources.from_oci({"blockIO": {"throttleReadBpsDevice": rate}})
    )
    assert any("4000:1" in str(problem) or "controller" in str(problem) for problem in problems)


@with_controllers
def test_limits_that_stay_unsaid_are_not_touched(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    cgroup.apply(Resources.from_oci({"pids": {"limit": 10}}))
    cgroup.apply(Resources())
    assert cgroup.read().pids == 10


# ---------------------------------------------------------------- counters


def test_stats_are_plain_data_with_the_cpu_time_at_least(cgroup: cgroups.Cgroup) -> None:
    stats = cgroup.stats()
    assert stats.cpu.usage_us is not None
    assert set(stats.as_dict()) == {"memory", "cpu", "pids", "io", "pressure"}
    assert cgroup.oom_kills() == 0


@with_controllers
def test_stats_show_the_limits(layout: Layout, cgroup: cgroups.Cgroup) -> None:
    memory = {"limit": 64 * MIB, "swap": 96 * MIB}
    cgroup.apply(Resources.from_oci({"memory": memory, "pids": {"limit": 12}}))
    stats = cgroup.stats()
    assert (stats.memory.limit, stats.memory.swap_limit) == (64 * MIB, 32 * MIB)
    assert stats.pids.limit == 12
