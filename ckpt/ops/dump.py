"""`ckpt dump`: freeze → CRIU → publish."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt.ops import readiness, snapshot, stops
from ckpt.ops.departure import Departure
from ckpt.ops.host import Host, held_container
from ckpt.ops.interrupt import shielded
from ckpt.ops.snapshot import Snapshot, Wanted
from images.bundle_stream import StreamWriter
from images.manifest import Manifest
from runtime.container.record import Container, check_name
from runtime.errors import BadInput, from_os_error


@dataclass(frozen=True, slots=True)
class Taken:
    """The checkpoint, and how it was taken."""

    manifest: Manifest
    how: Snapshot


def default_name(container: Container) -> str:
    """NAME-YYYYmmdd-HHMMSS, in UTC."""
    return container.record.name + time.strftime("-%Y%m%d-%H%M%S", time.gmtime())


def to_store(host: Host, name: str, wanted: Wanted) -> Taken:
    """Dump into the store; returns what was published. On any failure the container runs on."""
    host.ready()
    wanted.check()
    with held_container(host, name) as container:
        title = check_name(wanted.checkpoint or default_name(container), "checkpoint name")
        expected = readiness.require(host, container, store=True)
        with (
            host.store.begin(title) as draft,
            Departure(
                host,
                container,
                reason=f"checkpointed as {title}",
                leave_running=wanted.leave_running,
                with_volumes=False,
            ) as departure,
        ):
            departure.prepare()
            manifest = departure.manifest(title)
            departure.sync_files(draft)
            if wanted.leave_running:
                # Digests and the disk can wait until it runs again: the images are complete.
                place = Path(draft.path)
                found = snapshot.take(departure, draft, wanted, place=place, memory=expected.images)
                stops.reached("publish")
                published = draft.publish(replace(manifest, times=departure.times))
            else:
                departure.freeze_and_dump(draft)
                published = draft.publish(replace(manifest, times=departure.times))
                _end(container, departure)
                found = _ended(departure)
            found.bytes_total = published.size
            return Taken(published, found)


def to_stream(
    host: Host, name: str, fd: int, wanted: Wanted, *, place: Path | None = None
) -> Taken:
    """Dump into a checkpoint stream on FD. The container ends when all is written, or runs on much earlier.

    A container that ends touches no disk. For one that runs on, its memory lies in a nameless file in PLACE meanwhile
    (in the store's directory, unless told), if it is copied while it runs.
    """
    host.ready()
    wanted.check()
    with held_container(host, name) as container:
        title = check_name(wanted.checkpoint or default_name(container), "checkpoint name")
        expected = readiness.require(host, container, store=False)
        with (
            StreamWriter(fd, digest=True) as writer,
            Departure(
                host,
                container,
                reason=f"checkpointed as {title}",
                leave_running=wanted.leave_running,
            ) as departure,
        ):
            try:
                departure.prepare()
                manifest = departure.manifest(title)
                writer.manifest(manifest.to_bytes())
                departure.send_layers(writer)
                departure.sync_files(writer)
                if wanted.leave_running:
                    found = snapshot.take(
                        departure,
                        writer,
                        wanted,
                        place=place or Path(host.store.directory),
                        memory=expected.images,
                    )
                else:
                    departure.freeze_and_dump(writer)
                writer.end()
            except BaseException as error:
                writer.abort(str(error))
                raise
            if not wanted.leave_running:
                _end(container, departure)
                found = _ended(departure)
            found.bytes_total = writer.size
            return Taken(replace(manifest, times=departure.times), found)


def _ended(departure: Departure) -> Snapshot:
    return Snapshot(bytes_images=departure.bytes_images, bytes_files=departure.bytes_files)


def _end(container: Container, departure: Departure) -> None:
    """The checkpoint is whole: the tasks die. A Ctrl-C now must not leave them dead and still wanted."""
    with shielded():
        departure.verdict_kill()
        container.record.wanted = "stopped"
        container.save()
        departure.wait_killed()


def to_file(host: Host, name: str, path: Path, wanted: Wanted) -> Taken:
    """Dump into a stream in a file that appears whole or not at all."""
    with whole_file(path) as fd:
        return to_stream(host, name, fd, wanted, place=path.absolute().parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[int]:
    """A descriptor to write; the file gets its name when the block ends well, and is on disk then.

    Until then it has none (O_TMPFILE, open(2)), so that nothing of it is left however we end. Where the file system
    can't do that, it has a hidden one meanwhile.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    if path.is_dir():
        raise BadInput(doing="writing", target=str(path), why="it is a directory")
    try:
        fd, nameless = _open_new(temporary)
    except OSError as error:
        raise from_os_error(error, doing="creating", target=str(path)) from None
    try:
        yield fd
        os.fsync(fd)
        if nameless:
            # Python follows the link only where it calls linkat(2), as for a directory's descriptor (which an
            # absolute path leaves unused); its plain link(2) would link the link.
            os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
        os.rename(temporary, path)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def _open_new(temporary: Path) -> tuple[int, bool]:
    """A new file to write, and whether it has no name yet."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(temporary.parent, flags | os.O_TMPFILE, 0o600), True
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL, 0o600), False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, doing="opening", target=str(path)) from None
    try:
        yield fd
    finally:
        os.close(fd)
