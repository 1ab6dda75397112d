"""Everything that a process can have survives dump, restore and migration: claim by claim.

One container holds all that is claimed (tests/e2e/survive_lab/inside). It is dumped and restored twice on one host,
then moved to another host and back, cold, and there again, warm; each time it looks at itself from the inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks, needs
from tests.e2e.migrate.world import eventually
from tests.e2e.survive_lab import container
from tests.lab import Host, Lab

pytestmark = [
    *needs.SURVIVAL,
    pytest.mark.timeout(300),
    # The tests only look at reports: what could leak is the fixture's, and looking takes half a second each time.
    pytest.mark.may_leak(*leaks.EVERYTHING),
]

Reports = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    """What was found wrong, by journey: one report after each of its stages."""
    tree: Path = container.make_rootfs(tmp_path_factory.mktemp("survive") / "rootfs")
    with Lab(clients=()) as lab:
        a, b = lab["a"], lab["b"]
        v4, v6 = lab.container_address()
        container.start(
            *(a, tree, "--memory", "2g", "--pids-limit", "700"),
            *("--network", f"l2=br0,ip={v4},ip={v6}"),
        )
        limits = cgroup_limits(a)
        restored = [container.cycle(a, "first"), container.cycle(a, "second")]
        same_limits = [cgroup_limits(a) == limits]
        migrated = []
        for source, target, mode in ((a, b, "cold"), (b, a, "cold"), (a, b, "warm")):
            source.ckpt("migrate", "--mode", mode, container.NAME, f"root@{target.name}")
            eventually("the pager is done", lambda: not watched(target))  # noqa: B023 - called at once
            migrated.append(container.check(target))
            same_limits.append(cgroup_limits(target) == limits)
        wrong = "" if all(same_limits) else f"{limits} at first; then the same: {same_limits}"
        for report in (*restored, *migrated):
            report[LIMITS] = wrong
        yield {"restored": restored, "migrated": migrated}


LIMITS = "cgroup_limits"


def cgroup_limits(host: Host) -> dict[str, str]:
    """The limits as the host's cgroups have them."""
    paths = container.inspect(host, container.NAME)["cgroups"]
    found = {}
    for path in paths.values():
        for name in ("memory.max", "memory.limit_in_bytes", "pids.max"):
            file = Path(path, name)
            if file.exists():
                found[name] = file.read_text().strip()
    assert {str(2 << 30), "700"} <= set(found.values()), found
    return found


def watched(host: Host) -> bool:
    """Whether a pager still answers for missing pages of a process, which can see that (proc(5), VmFlags)."""
    group = next(iter(container.inspect(host, container.NAME)["cgroups"].values()))
    for pid in Path(group, "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # a zombie, or it has ended
            if " um" in Path(f"/proc/{pid}/smaps").read_text():
                return True
    return False


@pytest.mark.parametrize("claim", [*container.claims(), LIMITS])
@pytest.mark.parametrize("journey", ["restored", "migrated"])
def test_survives(reports: Reports, journey: str, claim: str) -> None:
    for stage, report in enumerate(reports[journey], 1):
        assert report[claim] == "", f"at stage {stage}: {report[claim]}"
