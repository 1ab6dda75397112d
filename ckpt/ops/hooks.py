"""OCI hooks that run in the host's namespaces (runtime-spec, runtime.md "Lifecycle"); stage/hooks.py runs the others.

prestart and createRuntime run when the container's namespaces are there and its network is plugged in, poststart when
its command runs, poststop when it has ended and what it held is freed. A life of a container runs its poststop hooks
once, whoever tears it down, also after a crash: a file says that they are due, and who removes it runs them.

A restore, local or by a migration, is the beginning of a life on its host: it runs these four as a start does, and the
dump or move that ended the life before ran its poststop. createContainer and startContainer are not run again: what
they did inside is in the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from runtime import launch
from runtime.container.record import Container
from runtime.errors import SystemFault
from runtime.spec import Spec
from runtime.stage import hooks

log = logging.getLogger(__name__)

POSTSTOP = "poststop"


def run(container: Container, kinds: Sequence[str], *, status: str, pid: int) -> None:
    """Run the hooks of KINDS. Raises SystemFault for the first that fails: the container must not come to be."""
    mine = Spec(container.record.spec).hooks
    for kind in kinds:
        try:
            hooks.run(mine[kind], launch.oci_state(container, status, pid))
        except ChildProcessError as error:
            raise SystemFault(
                doing=f"running the {kind} hooks of",
                target=f"container {container.record.name}",
                why=str(error),
            ) from None


AT_CREATION = ("prestart", "createRuntime")


def at_creation(container: Container) -> bool:
    """Whether there are some to run when its namespaces are there."""
    mine = Spec(container.record.spec).hooks
    return any(mine[kind] for kind in AT_CREATION)


def programs(container: Container) -> list[str]:
    """The programs of the host that a restored container's hooks need."""
    mine = Spec(container.record.spec).hooks
    kinds = (*AT_CREATION, "poststart", POSTSTOP)
    return sorted({str(hook["path"]) for kind in kinds for hook in mine[kind]})


def started(container: Container) -> None:
    """Its command runs: run the poststart hooks."""
    run_after(container, "poststart", status="running", pid=container.status().init_pid)


def run_after(container: Container, kind: str, *, status: str, pid: int = 0) -> None:
    """Run each hook of a kind whose failure changes nothing any more: it is logged, and the next one runs."""
    for hook in Spec(container.record.spec).hooks[kind]:
        try:
            hooks.run([hook], launch.oci_state(container, status, pid))
        except ChildProcessError as error:
            log.warning("%s of container %s: %s", kind, container.record.name, error)


def due(container: Container) -> None:
    """This life of the container has begun, so its end will run the poststop hooks."""
    if Spec(container.record.spec).hooks[POSTSTOP]:
        (container.paths.home / POSTSTOP).touch()


def stopped(container: Container) -> None:
    """Run the poststop hooks if they are due."""
    try:
        (container.paths.home / POSTSTOP).unlink()
    except FileNotFoundError:
        return
    run_after(container, POSTSTOP, status="stopped")
