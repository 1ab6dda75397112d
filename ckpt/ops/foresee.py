"""`ckpt forecast`: watch the container, look at the way to the other host, and say what each mode would cost.

With a host the second is done in the middle of a migration's dry run (migrate.py); without one it is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckpt.ops import volumes
from ckpt.ops.convergence import Limits
from ckpt.ops.forecast import ASSUMED, Circumstances, Forecast, Way, assumed, make
from ckpt.ops.host import Host, lock_container
from ckpt.ops.memory_use import memory_use
from ckpt.ops.observe import SECONDS, Check, Observed, observe
from ckpt.ops.preflight import Finding, source_findings, tree_size, why_not_warm_there
from ckpt.ops.trees import tmpfs_bytes
from runtime.container.record import Container


def foresee(
    host: Host,
    container: Container,
    way: Callable[[Observed], Way],
    *,
    layers: int = 0,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    not_warm: str = "",
    findings: tuple[Finding, ...] = (),
    wish: str = "auto",
    seconds: float = SECONDS,
    check: Check = lambda share: None,
) -> Forecast:
    """WAY: what lies between, asked after the container was watched. LAYERS: bytes. Raises RuntimeFault."""
    seen = observe(host, container, seconds, check)
    at = Circumstances(
        observed=seen,
        way=way(seen),
        files=_files(host, container),
        layers=layers,
        limits=limits,
        not_warm=not_warm,
        against="; ".join(f"{one['what']}: {one['why']}" for one in findings),
    )
    return make(at, wish, findings)


def _why_not_apart(pids: list[int], wish: str) -> str:
    use = memory_use(pids)
    return use.told() if wish == "auto" and use.much_forked else ""


def _files(host: Host, container: Container) -> int:
    """Bytes of its files that may travel, wherever they are."""
    named = volumes.named(host.paths, container.record.spec)
    places = [container.paths.upper, *(Path(volume.source) for volume in named)]
    return sum(map(tree_size, places)) + tmpfs_bytes(container)


def foresee_here(
    host: Host,
    name: str,
    *,
    bandwidth: float | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    wish: str = "auto",
    seconds: float = SECONDS,
    check: Check = lambda share: None,
) -> Forecast:
    """Without another host: BANDWIDTH bytes per second, and nothing known of what is there already."""
    host.ready()
    container = host.find(name)
    with lock_container(container, wait=3.0):
        container = host.find(container.record.id)
        container.require("running", doing="forecasting")
        pids = host.cgroup(container).pids()
        return foresee(
            host,
            container,
            lambda seen: assumed(bandwidth or ASSUMED, seen),
            limits=limits,
            not_warm=why_not_warm_there(host) or _why_not_apart(pids, wish),
            findings=tuple(source_findings(host, container, pids)),
            wish=wish,
            seconds=seconds,
            check=check,
        )
