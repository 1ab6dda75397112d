"""`ckpt forecast`: watch the container, look at the way to the other host, and say what each mode would cost.

With a host the second is done in the middle of a migration's dry run (migrate.py); without one it is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpt.ops import volumes
from ckpt.ops.forecast import ASSUMED, Circumstances, Forecast, Way, assumed, make
from ckpt.ops.host import Host, held_container
from ckpt.ops.memory_use import memory_use, why_not_apart
from ckpt.ops.observe import Check, Observed, observe
from ckpt.ops.preflight import Finding, source_findings, tree_size, why_not_warm_there
from ckpt.ops.trees import tmpfs_bytes
from ckpt.ops.wishes import Wishes
from runtime.container.record import Container


def foresee(
    host: Host,
    container: Container,
    way: Callable[[Observed], Way],
    wishes: Wishes,
    *,
    layers: int = 0,
    not_warm: str = "",
    findings: tuple[Finding, ...] = (),
    check: Check = lambda share: None,
) -> Forecast:
    """WAY: what lies between, asked after the container was watched. LAYERS: bytes. Raises RuntimeFault."""
    seen = observe(host, container, wishes.seconds, check)
    at = Circumstances(
        observed=seen,
        way=way(seen),
        files=_files(host, container),
        layers=layers,
        limits=wishes.limits,
        not_warm=not_warm,
        against="; ".join(f"{one['what']}: {one['why']}" for one in findings),
    )
    return make(at, wishes.name, findings)


def _files(host: Host, container: Container) -> int:
    """Bytes of its files that may travel, wherever they are."""
    named = volumes.named(host.paths, container.record.spec)
    places = [container.paths.upper, *(Path(volume.source) for volume in named)]
    return sum(map(tree_size, places)) + tmpfs_bytes(container)


def foresee_here(
    host: Host,
    name: str,
    wishes: Wishes,
    *,
    check: Check = lambda share: None,
) -> Forecast:
    """Without another host: the bandwidth is that of WISHES, and nothing known of what is there already."""
    host.ready()
    with held_container(host, name, wait=3.0) as container:
        container.require("running", doing="forecasting")
        pids = host.cgroup(container).pids()
        return foresee(
            host,
            container,
            lambda seen: assumed(wishes.bandwidth or ASSUMED, seen),
            wishes,
            not_warm=why_not_warm_there(host)
            or why_not_apart(container, memory_use(pids), wishes.mode),
            findings=tuple(source_findings(host, container, pids)),
            check=check,
        )
