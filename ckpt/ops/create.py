"""`ckpt create` and `ckpt run`: from a spec and a root file system to a container."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt.ops import disk, fitness, volumes
from ckpt.ops.bringup import tear_down
from ckpt.ops.host import Host, lock_container
from ckpt.ops.lifecycle import build, parse_restart, start
from runtime import cgroups
from runtime.container import idrange
from runtime.container.record import Container, Record, check_free, check_name, new_id
from runtime.errors import BadInput, NotFound
from runtime.files import discard
from runtime.init.build import init_program
from runtime.network import dns
from runtime.network import host as network
from runtime.network import plan as addresses
from runtime.network.config import NetworkConfig
from runtime.spec import first_problem, load_bundle
from runtime.spec.flags import NETWORK, RESTART


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asked for. spec: a complete OCI spec; rootfs: a directory or a tar archive."""

    name: str
    spec: dict[str, Any]
    rootfs: Path
    network: NetworkConfig
    user_namespace: bool = True
    stdin: bool = False
    remove: bool = False
    restart: dict[str, Any] = field(default_factory=lambda: {"policy": "no", "max": 0})
    log: dict[str, int] | None = None
    """{"max_bytes", "files"} if not as usual."""


def import_rootfs(host: Host, rootfs: Path) -> str:
    """The digest of the layer that ROOTFS is; imported unless it is here. Raises NotFound, BadInput."""
    try:
        mode = rootfs.stat().st_mode
    except OSError as error:
        raise NotFound(
            doing="reading", target=f"root file system {rootfs}", why=error.strerror or str(error)
        ) from None
    if stat.S_ISDIR(mode):
        return host.layers.import_directory(str(rootfs), devices="skip")
    return host.layers.import_archive(str(rootfs))


def init_layer(host: Host) -> str:
    """The layer with the static init, which lies above all others: no image can put another in its place."""
    program = init_program(host.paths.programs)
    return host.layers.ensure_layer_from_files({".ckpt/init": (0o755, program)})


def create(
    host: Host, wish: Wish, *, then: Callable[[Container], object] | None = None
) -> Container:
    """Make a container as far as "created". On any failure nothing of it is left.

    THEN is called with the container's lock still held: between making and starting nobody else has a say, and
    `ckpt recover` can tell a `run` that was cut off from a container that waits for its start.
    """
    check_name(wish.name)
    host.ready()
    check_free(host.paths, wish.name)
    fault = first_problem(wish.spec, f"of container {wish.name}")
    if fault is not None:
        raise fault
    fitness.check(wish.spec, user_namespace=wish.user_namespace, volumes=host.paths.volumes)
    if wish.user_namespace:
        fitness.check_places(host.paths, wish.spec)
    disk.check(host.paths.containers, wish.spec, user_namespace=wish.user_namespace)
    resources = cgroups.Resources.from_oci(wish.spec.get("linux", {}).get("resources"))
    cgroups.require(host.layout, resources)
    with host.layers.pinned():
        layers = [init_layer(host), import_rootfs(host, wish.rootfs)]
        base = Path(host.layers.path(layers[-1]))
        if wish.user_namespace:
            fitness.check_owners(wish.spec, base)
        volumes.make_missing(host.paths, wish.spec, base)
        with contextlib.ExitStack() as undo:
            container = reserve(host, wish, layers, wanted="begun" if then else "created")
            undo.callback(forget, host, container)
            with lock_container(container):
                make_files(host, container)
                build(host, container)
                if then is not None:
                    then(container)
            undo.pop_all()
    return container


def run(host: Host, wish: Wish) -> Container:
    """create, then start. What cannot be started is removed again."""
    return create(host, wish, then=lambda container: start(host, container))


def reserve(host: Host, wish: Wish, layers: list[str], *, wanted: str = "created") -> Container:
    """Give out name, id, id range and addresses, and write the record: one at a time on a host."""
    with host.lock():
        check_free(host.paths, wish.name)
        taken = [other.record.id_base for other in host.containers()]
        identity = new_id(host.paths)
        record = Record(
            id=identity,
            name=wish.name,
            created_ns=time.time_ns(),
            spec=wish.spec,
            layers=layers,
            id_base=idrange.choose(taken) if wish.user_namespace else 0,
            id_size=idrange.SIZE if wish.user_namespace else 0,
            network=addresses.resolve(
                wish.network, root_dir=host.paths.root, container_id=identity
            ).to_dict(),
            stdin=wish.stdin,
            remove=wish.remove,
            restart=wish.restart,
            wanted=wanted,
        )
        if wish.log:
            record.log = {**record.log, **wish.log}
        container = Container(host.paths, record)
        try:
            container.save()
        except BaseException:
            forget(host, container)  # a full disk, for one
            raise
        return container


def make_files(host: Host, container: Container) -> None:
    """The writable directory and the files of /etc that describe the container to itself."""
    record, paths = container.record, container.paths
    disk.place(container)
    for path in (paths.upper, paths.rw / "work", paths.etc):
        path.mkdir(mode=0o755, exist_ok=True)
    # overlayfs shows the upper directory's own owner and mode at the root.
    below = Path(host.layers.path(record.layers[-1])).stat()
    paths.upper.chmod(stat.S_IMODE(below.st_mode))
    shutil.chown(paths.upper, record.id_base + below.st_uid, record.id_base + below.st_gid)
    write_etc(container)


def write_etc(container: Container) -> None:
    """resolv.conf, hosts and hostname, for a container with a network or host name of its own."""
    record, etc = container.record, container.paths.etc
    config = NetworkConfig.from_dict(record.network)
    hostname = record.spec.get("hostname", "")
    (etc / "hostname").write_text(f"{hostname}\n")
    (etc / "hosts").write_text(dns.hosts_file(config, hostname))
    (etc / "resolv.conf").write_text(dns.resolv_conf(config))


def forget(host: Host, container: Container) -> None:
    """Leave nothing of a container that did not come to be."""
    tear_down(host, container)
    network.destroy(
        NetworkConfig.from_dict(container.record.network),
        container.record.id,
        root_dir=host.paths.root,
    )
    volumes.take_back(host.paths, container.record, host.containers())
    disk.release(container.paths.home)
    container.paths.record.unlink(missing_ok=True)
    discard(container.paths.home)


def wish_from_bundle(
    bundle: Path,
    name: str,
    args: tuple[str, ...] = (),
    *,
    network: NetworkConfig | None = None,
    restart: dict[str, Any] | None = None,
    stdin: bool = False,
    remove: bool = False,
) -> Wish:
    """An OCI bundle as it is: config.json and the root that it names. ARGS replace its command, if there are some.

    NETWORK and RESTART not given: as its annotations say, which `ckpt spec` writes; else a bridge for a network
    namespace, and no restart.
    """
    spec = load_bundle(str(bundle))
    raw = spec.raw
    if args:
        raw["process"]["args"] = list(args)
    own_network = spec.namespace("network") is not None
    if network is None:
        said = spec.annotations.get(NETWORK)
        network = (
            _network(said, bundle) if said else NetworkConfig("bridge" if own_network else "host")
        )
    if (network.kind != "host") != own_network:
        raise BadInput(
            doing="reading the spec's",
            target="linux.namespaces",
            why=f"{'there is a' if own_network else 'there is no'} network namespace, "
            f"which doesn't go with network {network.kind}",
        )
    return Wish(
        name=name,
        spec=raw,
        rootfs=Path(spec.root_path),
        network=network,
        user_namespace=spec.namespace("user") is not None,
        stdin=stdin,
        remove=remove,
        restart=restart or parse_restart(spec.annotations.get(RESTART, "no")),
    )


def _network(text: str, bundle: Path) -> NetworkConfig:
    try:
        return NetworkConfig.from_dict(json.loads(text))
    except ValueError as error:
        raise BadInput(
            doing="reading the annotation", target=f"{NETWORK} of {bundle}", why=str(error)
        ) from None
