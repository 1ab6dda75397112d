"""A container that is coming in: the destination's half of every restore and migration.

check()          what would fail is found and said
begin()          record, id range, addresses: from now on undone by abandon()
files            parts of kind "files" are applied to the upper directory as they come
restore()        a monitor runs CRIU, which takes its images from a source that may still be filling
prepared         everything is restored, not one instruction has run
go() | abandon() the verdict
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ckpt.ops import disk, hooks, places
from ckpt.ops.bringup import Surroundings, bring_up, network_of, resources_of
from ckpt.ops.create import forget, write_etc
from ckpt.ops.host import Host
from ckpt.ops.incoming import FilesSink
from ckpt.ops.landing import Landing
from ckpt.ops.late import Late
from ckpt.ops.processor import lacking
from ckpt.ops.volume_arrival import ArrivingVolumes, keep_volumes
from images.criu_stream import Along, Serve
from images.image_file import build_image, parse_image, rehearse
from images.manifest import Manifest
from images.parts import Sink
from images.readdress import readdress
from images.rewrite import Rewriter
from images.sources import Source
from runtime import launch, tmpfs
from runtime.container import idrange
from runtime.container.record import Container, Record, check_free, check_name, new_id
from runtime.criu import affinity, queues
from runtime.criu.failures import CriuFault
from runtime.criu.restore import Restorer
from runtime.errors import Unsupported, from_os_error
from runtime.files import locked
from runtime.network import host as network
from runtime.network import plan as addresses
from runtime.network.config import NetworkConfig
from runtime.pager import privilege
from runtime.tree.receive import receive

RESTORE_LIMIT = 3600.0


class Arrival:
    """Use as a context manager: leaving it before go() has succeeded undoes everything."""

    def __init__(
        self, host: Host, manifest: Manifest, *, name: str = "", same_id: bool = False
    ) -> None:
        self.host = host
        self.manifest = manifest
        self.name = name or manifest.container_name
        self.origin = manifest.name
        self._same_id = same_id
        self.began = False
        self._stack = contextlib.ExitStack()
        self._done = False
        self.container: Container
        self.around: Surroundings
        self.restorer: Restorer
        self.times: dict[str, int] = {}
        self.tmpfs: dict[str, int] = {}
        """Mounts that hang nowhere yet, by key: filled here, put in place by the monitor."""
        self.late: Late | None = None
        self.volumes = ArrivingVolumes(host.paths, manifest)
        self.notes: list[str] = self.volumes.notes()
        """What is different from before, for people."""
        self._moved: dict[str, str] = {}
        self._faults: list[BaseException] = []
        self._server: threading.Thread | None = None

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    # ---- before anything is made

    def problems(self) -> list[str]:
        """Every reason why this checkpoint cannot be restored here, a line each."""
        manifest, found = self.manifest, []
        if manifest.arch != platform.machine():
            found.append(f"it is of a {manifest.arch} host, this is {platform.machine()}")
        if absent := lacking(manifest.cpu_features):
            found.append(f"this CPU lacks {', '.join(absent[:8])}")
        theirs = tuple(int(part) for part in manifest.criu.split("."))
        if theirs[:2] > self.host.criu.version[:2]:
            found.append(f"it is of CRIU {manifest.criu}, here is {self.host.criu.text}")
        if manifest.rootfs.id_base:
            found += [one.why for one in places.problems(self.host.paths, self.volumes.sources)]
        if disk.limit_of(manifest.container["record"]["spec"]) is not None:
            why, hint = disk.why_not(self.host.paths.containers)
            found += [f"its disk is limited, and {why}: {hint}"] if why else []
        return found + self.volumes.problems()

    def check(self) -> None:
        """Raises Unsupported with problems() and what is missing here."""
        missing = [d for d in self.manifest.rootfs.layers if not self.host.layers.has(d)]
        self._refuse(self.problems() + [f"layer {digest[:12]} is not here" for digest in missing])

    def check_stream(self) -> None:
        """As check(), for a stream, which brings layers that are missing."""
        self._refuse(self.problems())

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise Unsupported(
                doing="restoring",
                target=f"checkpoint {self.manifest.name}",
                why="; ".join(problems),
            )

    # ---- a place for it

    def begin(self) -> None:
        """Reserve name, id range and addresses, and write the record. Raises Conflict."""
        check_name(self.name)
        with self.host.lock():
            check_free(self.host.paths, self.name)
            record = Record.from_dict(dict(self.manifest.container["record"]))
            everyone = self.host.containers()
            record.name = self.name
            if not self._same_id or self.host.paths.container(record.id).home.exists():
                record.id = new_id(self.host.paths)
            record.created_ns = time.time_ns()
            record.origin = self.origin
            record.wanted = "running"
            if record.id_base:
                taken = (other.record.id_base for other in everyone)
                record.id_base = idrange.choose(taken, wish=record.id_base)
            self.container = Container(self.host.paths, record)
            # Till the end: a monitor that gives up (`ckpt internal ended`) waits until we have tidied up.
            self._stack.enter_context(
                locked(self.container.paths.lock, what=f"container {record.name}")
            )
            self._stack.callback(self._forget)
            self.began = True
            self.volumes.place(record, everyone)
            record.network = self._network(record, everyone).to_dict()
            self.container.save()
        disk.place(self.container)
        for path in (self.container.paths.upper, self.container.paths.rw / "work"):
            path.mkdir(mode=0o755)
        self.volumes.make(self.container.record)
        self.container.paths.etc.mkdir(mode=0o755)
        self.container.paths.logs.mkdir(mode=0o700)
        write_etc(self.container)
        self._make_tmpfs()
        if self.rewriter():
            rehearse()

    def _make_tmpfs(self) -> None:
        for one in launch.tmpfs_of(self.container):
            try:
                fd = tmpfs.make(one.flags, one.data, id_base=self.container.record.id_base)
            except OSError as error:
                raise from_os_error(error, doing="mounting", target=one.point) from error
            self._stack.callback(os.close, fd)
            self.tmpfs[one.key] = fd

    def _network(self, record: Record, everyone: list[Container]) -> NetworkConfig:
        """Its addresses of before; others where those are somebody else's now and it may have others."""
        before = NetworkConfig.from_dict(record.network)
        root = self.host.paths.root
        config = before
        # A migration moves its addresses along, or is refused; l2 addresses were chosen by the user.
        if (
            before.kind == "bridge"
            and not self._same_id
            and addresses.conflicts(before, root_dir=root, container_id=record.id)
        ):
            config = before.renewed()
        taken = [
            port
            for other in everyone
            for port in NetworkConfig.from_dict(other.record.network).ports
        ]
        if not self._same_id:
            free = tuple(p for p in config.ports if not any(map(p.overlaps, taken)))
            if free != config.ports:
                lost = ", ".join(str(port) for port in config.ports if port not in free)
                self.notes.append(f"not published, since another container has it: {lost}")
                config = config.replace(ports=free)
        after = addresses.resolve(config, root_dir=root, container_id=record.id)
        self._moved = _pairs(before.addresses, after.addresses)
        if self._moved:
            new = ", ".join(self._moved.values())
            self.notes.append(f"its addresses are another's; it has {new}, connections ended")
        return after

    def _forget(self) -> None:
        if not self._done:
            forget(self.host, self.container)

    def files(self) -> Sink:
        """The sink for parts of kind "files"."""
        return FilesSink(self)

    def apply_upper(self, fd: int) -> None:
        receive(fd, str(self.container.paths.upper), id_shift=self.id_shift)

    def apply_tmpfs(self, key: str, fd: int) -> None:
        receive(fd, f"/proc/self/fd/{self.tmpfs[key]}", id_shift=self.id_shift)

    def apply_logs(self, fd: int) -> None:
        receive(fd, str(self.container.paths.logs))

    @property
    def id_shift(self) -> tuple[int, int] | None:
        record = self.container.record
        return (record.id_base, record.id_size) if record.id_base else None

    def rewriter(self) -> Rewriter:
        """What must change in CRIU's images on their way in: host ids, if another range was free here."""
        rewriter = Rewriter()
        before, after = self.manifest.rootfs.id_base or 0, self.container.record.id_base
        if before != after:
            rewriter.move_ids(before, after)
        if self._moved or self._queues:
            rewriter.add(r"files\.img", self._rewrite_files)
        return rewriter

    def _rewrite_files(self, data: bytes) -> bytes:
        entries = parse_image(data, "files.img", "FILES")
        readdress(entries, self._moved)
        if self._queues:
            queues.rewrite(entries, self._queues)
        return build_image("FILES", entries)

    @property
    def _queues(self) -> dict[str, Any]:
        """The message queues that the dump found; empty if none."""
        found: dict[str, Any] = self.manifest.container["quiesced"].get("queues") or {}
        return found

    # ---- CRIU

    def restore(
        self,
        source: Source,
        *,
        check: Callable[[], None] = lambda: None,
        landing: Landing | None = None,
        on_started: Callable[[], None] = lambda: None,
    ) -> None:
        """Have CRIU restore from SOURCE, up to the point where nothing has run yet. CHECK may raise to end it.

        LANDING: the memory comes by another way, and a pager gives it to the tasks. ON_STARTED: called when CRIU waits
        for its first image.
        """
        container = self.container
        work = container.paths.run / "criu"
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        own_network = network_of(container).kind != "host"
        target = f"container {container.record.name}"
        self.restorer = self._stack.enter_context(
            Restorer(
                self.host.criu,
                work=work,
                programs=self.host.paths.programs,
                own_network=own_network,
                target=target,
                lazy=landing is not None,
            )
        )
        if landing is not None:
            landing.start_pager(self.host, self.restorer.directory, work / "pager.log")
        # The network, message queues and hooks of the spec want the new namespaces; volumes are compared before CRIU
        # opens a file.
        early = (
            own_network
            or bool(self._queues)
            or hooks.at_creation(container)
            or self.volumes.to_compare
        )
        plan = self.restorer.plan(self.manifest.container["quiesced"], stop_early=early)
        serve = Serve(self.restorer.directory)
        self.around = self._stack.enter_context(
            bring_up(self.host, container, restore=plan, tmpfs=self.tmpfs, limits=False)
        )
        checked = self._checker(check)
        if landing is not None:
            landing.charge_to(self.around.cgroup)

        def along(image: str) -> int | None:
            if landing is None:
                return None
            return landing.along(image, container.record.id_base or 0, check)

        self._server = threading.Thread(
            target=self._serve, args=(serve, source, along), name="serve", daemon=True
        )
        self._server.start()
        try:
            with _lazily(landing is not None and bool(container.record.id_base)):
                self.restorer.started(self.around.control)
                on_started()
                if early:
                    pid = self.restorer.namespaces(RESTORE_LIMIT, checked)
                    self.volumes.settle()
                    self.around.plug(pid)
                    self._make_queues(pid)
                    self.restorer.plugged()
                self.restorer.prepared(RESTORE_LIMIT, checked)
        except CriuFault as fault:
            # The container's directories go; what CRIU said about it stays.
            fault.log = self.host.keep_log(fault.log, f"{self.name}-restore")
            raise
        if landing is not None:
            landing.check_restored(self.around.cgroup.pids)
        # Not before its files are here: between two rounds they may be more than they ever were at the source.
        disk.enforce(self.container)
        self._carry_on()
        self.times["prepared"] = time.time_ns()

    def _make_queues(self, pid: int) -> None:
        if self._queues:
            place = str(self.container.paths.run / "m" / queues.KEY)
            made = self.late.queues if self.late else []
            queues.restore(pid, place, made, self.container.record.id_base)

    def _carry_on(self) -> None:
        """What CRIU doesn't restore; nothing has run yet."""
        if self.late is None:
            return
        self.late.carry_on(self.around.control)
        affinity.apply(self.around.cgroup.pids(), self.late.affinity)

    def _serve(self, serve: Serve, source: Source, along: Along) -> None:
        try:
            serve.run(source, along=along)
        except BaseException as error:
            self._faults.append(error)

    def _checker(self, check: Callable[[], None]) -> Callable[[], None]:
        def checked() -> None:
            check()
            if self._faults:
                raise self._faults[0]

        return checked

    # ---- the verdict

    def go(self) -> int:
        """Let it run; returns its init's pid."""
        self.around.cgroup.apply(resources_of(self.container))
        self.around.attach()
        keep_volumes(self.container)
        self._done = True
        pid = self.restorer.go()
        self.times["running"] = self.restorer.resumed_ns
        network.announce(self.around.prepared, pid)
        if self._server is not None:
            self._server.join(10)
        return pid

    def tell_started(self) -> None:
        """It runs here now: after go(), and after everything that somebody waits for."""
        hooks.started(self.container)

    def hold(self) -> None:
        """What is prepared outlives us from now on: only a verdict ends it."""
        self.restorer.hold()
        self._done = True

    def abandon(self) -> None:
        """Undo everything. Leaving the context does the same, unless hold() or go() came before."""
        self._done = False
        self._stack.close()


def _pairs(before: Iterable[str], after: Iterable[str]) -> dict[str, str]:
    """Old address to new, of the same family and in order, for those that changed; without prefixes."""
    old, new = ([ipaddress.ip_interface(text).ip for text in texts] for texts in (before, after))
    pairs: dict[str, str] = {}
    for version in (4, 6):
        mine = [ip for ip in old if ip.version == version]
        theirs = [ip for ip in new if ip.version == version]
        pairs |= {str(a): str(b) for a, b in zip(mine, theirs, strict=False) if a != b}
    return pairs


def _lazily(needed: bool) -> contextlib.AbstractContextManager[None]:
    """CRIU's restorer opens its userfaultfd as a user of the container's namespace, which the host must allow."""
    return privilege.allowed() if needed else contextlib.nullcontext()
