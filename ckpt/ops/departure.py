"""A container that is being dumped: the source's half of every checkpoint and migration.

    prepare()            what will be needed is looked up; the monitor is told; nothing is frozen
    sync_files(target)   rounds over its files while the container runs
    freeze_and_dump()    the frozen window opens; images and the last file changes go into the target
    kill() | resume()    the verdict

Images and files are parts of one checkpoint, whether its target is the store, a file, a pipe or another host.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckpt.ops import heal, volume_arrival, volumes
from ckpt.ops.carry import Carrier
from ckpt.ops.host import Host
from ckpt.ops.late import NAME as LATE
from ckpt.ops.late import Late
from ckpt.ops.outgoing import Beside, Held, Target, put_held, put_part, send_layers
from ckpt.ops.processor import cpu_features
from ckpt.ops.taken import by_kind
from ckpt.ops.trees import LOGS, Tree, trees_of
from images import remaps
from images.criu_stream import Capture
from images.errors import ImageFault
from images.image_file import rehearse
from images.lazy_entries import task_of
from images.manifest import Manifest, Rootfs
from images.parts import CRIU, FILES
from runtime import launch, proc
from runtime.cgroups.monitors import monitors
from runtime.container.record import Container
from runtime.control import Control
from runtime.criu import affinity, aftermath, links, queues
from runtime.criu.door import Door
from runtime.criu.dump import Dumper, Lazy
from runtime.criu.failures import CriuFault
from runtime.criu.page_server import PageServer
from runtime.criu.watches import watched_paths
from runtime.errors import Conflict, NotFound, RuntimeFault, SystemFault
from runtime.network.config import NetworkConfig
from runtime.tree import shared_writable
from runtime.veil.veil import Veil

DUMP_LIMIT = 3600.0
"""Seconds that a dump may take in all; stalls are found much earlier by the streams' own watchdogs."""


class Departure:
    """Use as a context manager: leaving it without a verdict resumes the container.

    WITH_VOLUMES: named volumes come along. Not into the store of the host on which they stay.
    """

    def __init__(
        self,
        host: Host,
        container: Container,
        *,
        reason: str,
        leave_running: bool,
        with_volumes: bool = True,
    ) -> None:
        self.host = host
        self.container = container
        self._reason = reason
        self._leave_running = leave_running
        self.quiesced: dict[str, Any] = {}
        self.times: dict[str, int] = {}
        self._dumper: Dumper | None = None
        self._control: Control | None = None
        self._verdict = False
        self._tasks: list[int] = []
        self._capture: Capture | None = None
        self._carrier: Carrier | None = None
        self._whole = False
        self._unfinished = False
        self.held: dict[str, bytes] = {}
        """Images that were kept back, for who completes the checkpoint: see leave_memory_to()."""
        self._veils = contextlib.ExitStack()
        self._init_pid = 0
        self._door: Door | None = None
        self._linked = False
        self._queues: queues.Found | None = None
        self._trees: list[Tree] = []
        self._synced = False
        self._logs = Tree(LOGS, str(container.paths.logs))
        self.bytes_files = 0
        """Of content, in all rounds."""
        self.bytes_images = 0
        """What CRIU wrote."""
        self._images: dict[str, int] = {}
        self._volumes = volumes.named(host.paths, container.record.spec)
        self._carried = self._volumes if with_volumes else []

    def __enter__(self) -> Departure:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with contextlib.suppress(RuntimeFault):
            self.resume()
        if self._dumper is not None:
            self._dumper.close()
            self._veils.close()
            if self._dumper.killed and self.network.kind != "host":
                # NotFound: it was dumped all the same, and is gone from here.
                with contextlib.suppress(NotFound):
                    aftermath.release(self.host.cgroup(self.container).pids())
        if isinstance(error, CriuFault):
            # The container's volatile directory goes with it; what CRIU said about it stays.
            error.log = self.host.keep_log(error.log, f"{self.container.record.name}-dump")
        if self._control is not None:
            if self._unfinished:
                self._finished()
            self._control.close()

    # ---- before the freeze

    def prepare(self) -> None:
        """Tell the monitor, which starts no more jobs; learn what the checkpoint must remember of the streams."""
        status = self.container.require("running", doing="dumping")
        self._control = Control.connect(self.container.paths, self.container.record.name)
        self.quiesced = self._control.call(
            "quiesce", reason=self._reason, environment=_ways_to_others()
        )
        self._trees = trees_of(self.container, self._carried)
        externals = launch.external_points(self.container)
        self.quiesced["externals"] = [list(pair) for pair in externals]
        self._init_pid = status.init_pid
        if self.network.own_namespace:
            target = f"container {self.container.record.name}"
            self._door = Door(status.init_pid, target, outside=self.network.has_link)
        pids = self.host.cgroup(self.container).pids()
        self._queues = queues.find(status.init_pid, pids)
        if self._queues is not None:
            self.quiesced["queues"] = asdict(self._queues)
            externals.append((self._queues.point, queues.KEY))
            self.quiesced["externals"].append([self._queues.point, queues.KEY])
        work = self.container.paths.run / "criu"
        work.mkdir(mode=0o700, exist_ok=True)
        self._dumper = Dumper(
            self.host.criu,
            pid=status.init_pid,
            work=work,
            externals=externals,
            files=self._queues.files if self._queues else (),
            watched=watched_paths(status.init_pid, pids),
            own_network=self.network.kind != "host",
            leave_running=self._leave_running,
            target=f"container {self.container.record.name}",
            programs=self.host.paths.programs,
            still=lambda: heal.stilled(self.host, self.container),
            aside=monitors(self.host.layout),
        )

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig.from_dict(self.container.record.network)

    def manifest(self, name: str) -> Manifest:
        """The checkpoint's description, as far as it is known before the dump."""
        record = self.container.record
        return Manifest(
            name=name,
            container_id=record.id,
            container_name=record.name,
            created=time.time_ns(),
            host=socket.gethostname(),
            arch=platform.machine(),
            kernel=platform.release(),
            criu=self.host.criu.text,
            cpu_features=cpu_features(),
            cgroup_layout=self.host.layout.kind,
            spec=record.spec,
            container={
                "record": record.to_dict(),
                "quiesced": self.quiesced,
                "volumes": volume_arrival.to_manifest(self._volumes, carried=bool(self._carried)),
            },
            network=record.network,
            rootfs=Rootfs(
                layers=tuple(record.layers),
                id_base=record.id_base or None,
                id_count=record.id_size,
            ),
            left_out=tuple(self._left_out()),
            left_running=self._leave_running,
        )

    def sync_files(self, target: Target, *, frozen: bool = False) -> int:
        """One round over the files, as parts of their own; returns bytes of file content sent."""
        if not frozen and not self._synced:
            self._logs.round(target)
        self._synced = True
        mapped = self._mapped() if frozen else ()
        sent = sum(tree.round(target, frozen=frozen, mapped=mapped) for tree in self._trees)
        self.bytes_files += sent
        return sent

    def _left_out(self) -> list[str]:
        """What the checkpoint doesn't hold, a line each."""
        found = [
            f"volume {volume.name} at {', '.join(volume.points)}: it stays on its host"
            for volume in self._volumes
            if volume not in self._carried
        ]
        found += [
            f"{source} of the host, mounted at {point}: it must be there at a restore"
            for source, point in volumes.binds(self.host.paths, self.container.record.spec)
        ]
        return found

    def _late(self, target: Target) -> None:
        """What is known only now: the ends of jobs, input not read yet, and what CRIU leaves out."""
        assert self._control is not None
        pids = self.host.cgroup(self.container).pids()
        late = Late(affinity=affinity.read(self._init_pid, pids))
        if self._queues is not None:
            base = self.container.record.id_base
            late.queues = queues.save(self._init_pid, self._queues, base)
        late.settle(self._control)
        self._logs.round(target, frozen=True)
        put_part(target, FILES, LATE, late.to_bytes())

    def _mapped(self) -> set[bytes]:
        """Files that tasks may have changed through shared mappings, which leave no timestamp behind."""
        found: set[bytes] = set()
        for pid in self.host.cgroup(self.container).pids():
            with contextlib.suppress(OSError, RuntimeFault):
                found |= shared_writable(pid)
        return found

    def send_layers(self, target: Target, *, only: list[str] | None = None) -> int:
        """The read-only layers, or those of them in ONLY; returns bytes of file content."""
        layers = self.container.record.layers
        return send_layers(self.host, [d for d in layers if only is None or d in only], target)

    def leave_memory_to(self, carrier: Carrier, *, whole: bool = False) -> None:
        """Before warm_up(): CRIU gets to see nothing of the pages that CARRIER carries.

        What CARRIER hasn't got, CRIU leaves in the tasks too, for a restore whose pages come from a pager. With WHOLE
        it writes that out, and the caller makes a whole checkpoint of it and of `held` (see assemble.py).
        """
        assert self._dumper is not None
        rehearse()  # for the page maps
        self._carrier = carrier
        self._whole = whole
        veil = self._veils.enter_context(
            Veil(carrier.hide, self.host.paths.programs, carrier.hide_shared)
        )
        server = None
        if not whole:
            server = self._veils.enter_context(PageServer(self.host.criu.version))
        self._dumper.leave_pages(Lazy(veil, server))

    def warm_up(self) -> None:
        """Start CRIU, up to the point before it freezes: its own preparations are not part of the window."""
        assert self._dumper is not None
        if self._capture is None:
            # CRIU connects to the socket as it starts.
            self._capture = Capture(self._dumper.directory)
            self._dumper.start()

    # ---- the frozen window

    def freeze_and_dump(self, target: Target, *, check: Callable[[], None] = lambda: None) -> None:
        """Freeze, and put the images and the last file changes into TARGET. Tasks stay frozen.

        If a carrier carries to another host, its settle() is next. CHECK is called now and then; what it raises ends
        the dump, and the container runs on.
        """
        self.warm_up()
        capture = self._capture
        assert capture is not None
        sink = Held(target.sink(CRIU), page_maps=self._carrier is not None, shared=self._whole)
        faults: list[BaseException] = []

        def count(name: str, size: int) -> None:
            self.bytes_images += size
            self._images[name] = size

        def take() -> None:
            try:
                capture.run(sink, on_file=count)
            except BaseException as error:
                faults.append(error)

        taker = threading.Thread(target=take, name="capture", daemon=True)

        def checked() -> None:
            check()
            if faults:
                raise faults[0]

        taker.start()
        try:
            self._dump_frozen(target, sink, capture, checked)
        except CriuFault as fault:
            # A target that takes no more is a broken pipe for CRIU, which may tell us before our own thread does.
            taker.join(5)
            if sink.fault is not None:
                raise sink.fault from fault
            raise
        except (Conflict, ImageFault) as fault:
            # A CRIU that gives up lets the tasks run: files change, and images end early. Its own reason counts.
            if sink.fault is None and (isinstance(fault, Conflict) or fault in faults):
                self._dumper_ended(5.0)
            raise

    def _dumper_ended(self, wait: float) -> None:
        """Raises CriuFault if CRIU ends within WAIT seconds."""
        assert self._dumper is not None
        until = time.monotonic() + wait
        while time.monotonic() < until:
            self._dumper.require_alive()
            time.sleep(0.02)

    def _dump_frozen(
        self, target: Target, sink: Held, capture: Capture, checked: Callable[[], None]
    ) -> None:
        dumper = self._dumper
        assert dumper is not None
        if self._door is not None:
            self._door.close()
        dumper.freeze()
        self.times["frozen"] = dumper.frozen_ns
        while not sink.begun.wait(0.05):
            checked()
            dumper.require_alive()
        self.times["images"] = time.time_ns()
        # CRIU opens its first image when every task is frozen: what files and memory are now is what they stay.
        with Beside(self._carrier.last if self._carrier else None, checked):
            self.sync_files(target, frozen=True)
            self._late(target)
            self.times["files"] = time.time_ns()
            dumper.dumped(DUMP_LIMIT, checked)
        while not capture.complete:
            checked()
            time.sleep(0.0005)
        if self._carrier is not None and not self._whole:
            for name in [name for name in sink.held if task_of(name) is not None]:
                sink.held[name] = self._carrier.rewrite(int(task_of(name) or 0), sink.held[name])
        if remaps.NAME in sink.held and remaps.has_links(sink.held[remaps.NAME]):
            # CRIU gave new names to files that had lost the one they were opened by.
            self._linked = True
            self.sync_files(target, frozen=True)
        self.times["dumped"] = time.time_ns()
        if self._whole:
            self.held = sink.held
            return
        put_held(target, sink.held)

    def images_by_kind(self) -> dict[str, int]:
        """Bytes that CRIU wrote: all that it held the container still for, besides looking."""
        looked = self._carrier if not self._whole else None
        return by_kind(self._images, looked.left_to_criu() if looked is not None else None)

    # ---- the verdict

    def verdict_kill(self) -> None:
        """It lives on elsewhere, or in the checkpoint: the tasks die here."""
        assert self._dumper is not None
        self._verdict = True
        self._tasks = self.host.cgroup(self.container).pids()
        self._dumper.verdict_kill()

    def kill_tasks(self) -> None:
        """SIGKILL for each of them, whatever CRIU does: it waits for those that the freezer holds."""
        with contextlib.ExitStack() as handles:
            opened: dict[int, int] = {}
            for pid in self._tasks:
                with contextlib.suppress(ProcessLookupError):
                    opened[pid] = os.pidfd_open(pid)
                    handles.callback(os.close, opened[pid])
            for pid in set(self.host.cgroup(self.container).pids()) & set(opened):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(opened[pid], signal.SIGKILL)

    def wait_dying(self) -> None:
        """Until every task is on its way out: none will run another instruction of its program."""
        assert self._dumper is not None
        until = time.monotonic() + 30
        while not all(map(proc.is_dying, self._tasks)):
            if time.monotonic() > until:
                raise SystemFault(
                    doing="ending",
                    target=f"container {self.container.record.name}",
                    why="its processes do not die",
                )
            time.sleep(0.0005)

    def wait_killed(self) -> None:
        """Until they are dead, and the monitor has written down their end."""
        assert self._dumper is not None and self._control is not None
        self._dumper.wait_killed()
        if self._linked:
            links.remove(self.container.paths.upper)
            for volume in self._carried:
                links.remove(Path(volume.source))
        self.times["killed"] = time.time_ns()
        with contextlib.suppress(RuntimeFault):
            self._control.receive(10.0)  # end of file: the monitor goes

    def kill(self) -> None:
        self.verdict_kill()
        self.wait_killed()

    def keep_held(self) -> None:
        """The freezer holds the tasks, and nobody but a verdict ends that: not our own end either."""
        self._verdict = True

    def finish_running(self, *, unfinished: bool = False) -> None:
        """The end of a dump with leave_running: the tasks run on.

        UNFINISHED: the checkpoint isn't whole yet. If we die before we leave, somebody sweeps up after us.
        """
        assert self._dumper is not None and self._control is not None
        self._verdict = True
        self._unfinished = unfinished
        self._dumper.finish_running()
        self._open_door()
        self.times["resumed"] = time.time_ns()
        self._control.call("resume", unfinished=unfinished)

    def _finished(self) -> None:
        """Nothing is left that somebody would have to sweep up."""
        assert self._control is not None
        with contextlib.suppress(RuntimeFault):  # the container may have ended meanwhile
            self._control.call("finished")

    def _open_door(self) -> None:
        if self._door is not None:
            # It may be gone with its processes.
            with contextlib.suppress(RuntimeFault, OSError):
                self._door.open()

    def resume(self) -> None:
        """It stays: as if nothing had been. Whatever came of prepare()."""
        if self._verdict or not self.quiesced:
            return
        assert self._control is not None
        self._verdict = True
        if self._dumper is not None:
            self._dumper.resume()
        self._open_door()
        self.times["resumed"] = time.time_ns()
        self._control.call("resume")


def _ways_to_others() -> dict[str, str]:
    """What the monitor's helper needs to finish a migration whose process died: how this one reaches other hosts."""
    names = (
        "CKPT_SSH_CONFIG",
        "CKPT_KNOWN_HOSTS",
        "CKPT_REMOTE",
        "CKPT_TEST_STOP_AT",
        "SSH_AUTH_SOCK",
        "HOME",
    )
    return {name: os.environ[name] for name in names if name in os.environ}
