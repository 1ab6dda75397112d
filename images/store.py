"""Where checkpoints lie on a host: a directory with a directory per checkpoint.

    STORE/.lock                      held for moments: names appear, change and go under it
    STORE/.draft-XXXXXXXX/           being written, its lock held by the writer
    STORE/NAME/manifest.msgpack      see manifest.pack_file
    STORE/NAME/criu/…                CRIU's images
    STORE/NAME/files/…               everything else

A draft becomes a checkpoint by one rename, after all its files are on the disk: it is there whole
or not at all, whatever dies in between. A published one never changes.

Two kinds of locks (flock(2), so the kernel drops them with their owner). Each draft's and each
checkpoint's directory has one: a writer holds it exclusively, readers share it, and whoever wants
to remove or rename asks for it exclusively without waiting. A draft whose lock is free has lost
its owner: sweep() removes it. The store's own .lock closes the gap between finding a name and
locking it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from images.checkpoint import CRIU_DIR, FILES_DIR, MANIFEST_FILE, Checkpoint, Problem
from images.draft import Draft, open_directory, sync_directory
from images.errors import BadInput, Conflict, ImageFault, NotFound
from images.manifest import NAME, Manifest
from images.moving import os_fault

_DRAFT = ".draft-"
_DOOMED = ".doomed-"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of Store.list(). manifest is None if it can't be read, and fault says why.

    size: bytes on the disk.
    """

    name: str
    manifest: Manifest | None
    fault: ImageFault | None
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """checkpoints, drafts: how many; size: bytes on the disk of all; free: bytes left there."""

    checkpoints: int
    drafts: int
    size: int
    free: int


# Store has a method list(), which hides the type inside the class.
Listings = list[Listing]
Names = list[str]
Problems = list[Problem]


class Store:
    """The checkpoints in one directory, which is made if it isn't there."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise os_fault(error, doing="making the store", target=directory) from error

    # ---- writing

    def begin(self, name: str) -> Draft:
        """Start a checkpoint of that name. Raises BadInput, Conflict, NoSpace."""
        check_name(name)
        with self._locked():
            self._refuse_taken(name)
            path = os.path.join(self.directory, _DRAFT + secrets.token_hex(4))
            fd = -1
            try:
                os.mkdir(path, 0o700)
                for kind in (CRIU_DIR, FILES_DIR):
                    os.mkdir(os.path.join(path, kind), 0o700)
                fd = open_directory(path)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                shutil.rmtree(path, ignore_errors=True)
                raise os_fault(error, doing="starting", target=f"checkpoint {name}") from error
        return Draft(name, path, fd, self._publish)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, readable or not. Raises NotFound, Conflict (it is in use)."""
        with self._locked():
            fd = self._lock_alone(name, "removing")
            # Renamed first: half a checkpoint must never carry a name.
            doomed = os.path.join(self.directory, _DOOMED + secrets.token_hex(4))
            os.rename(self._path(name), doomed)
        try:
            shutil.rmtree(doomed)
        except OSError as error:
            raise os_fault(error, doing="removing", target=f"checkpoint {name}") from error
        finally:
            os.close(fd)

    def rename(self, name: str, new_name: str) -> None:
        """The manifest keeps the name under which it was taken. Raises NotFound, Conflict."""
        check_name(new_name)
        with self._locked():
            fd = self._lock_alone(name, "renaming")
            try:
                self._refuse_taken(new_name)
                os.rename(self._path(name), self._path(new_name))
                sync_directory(self.directory)
            except OSError as error:
                raise os_fault(error, doing="renaming", target=f"checkpoint {name}") from error
            finally:
                os.close(fd)

    def sweep(self) -> Names:
        """Remove drafts without an owner and what is left of removals; returns their names."""
        swept = []
        with self._locked():
            for entry in sorted(os.listdir(self.directory)):
                if not entry.startswith((_DRAFT, _DOOMED)):
                    continue
                path = os.path.join(self.directory, entry)
                with contextlib.suppress(OSError):
                    fd = open_directory(path)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(path)
                        swept.append(entry)
                    finally:
                        os.close(fd)
        return swept

    # ---- reading

    def names(self) -> Names:
        """The names of all checkpoints, sorted."""
        with os.scandir(self.directory) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in found if NAME.fullmatch(name))

    def list(self) -> Listings:
        """All checkpoints, unreadable ones too."""
        found = []
        for name in self.names():
            size = _disk_size(self._path(name))
            try:
                with self.open(name) as checkpoint:
                    found.append(Listing(name, checkpoint.manifest, None, size))
            except NotFound:
                continue  # removed just now
            except ImageFault as fault:
                found.append(Listing(name, None, fault, size))
        return found

    def open(self, name: str) -> Checkpoint:
        """A checkpoint for reading; it can't be removed until it is closed (or its process ends).

        Raises BadInput, NotFound, Corrupt, WrongVersion.
        """
        with self._locked():
            fd = self._open(name, "opening")
            fcntl.flock(fd, fcntl.LOCK_SH)
        try:
            return Checkpoint(name, self._path(name), fd)
        except BaseException:
            os.close(fd)
            raise

    def verify(self, name: str) -> Problems:
        """Everything that is wrong with a checkpoint: read in full. Empty if it is as written.

        Raises BadInput, NotFound.
        """
        try:
            with self.open(name) as checkpoint:
                return checkpoint.verify()
        except (BadInput, NotFound):
            raise
        except ImageFault as fault:
            return [Problem(MANIFEST_FILE, fault.why)]

    def usage(self) -> Usage:
        names = os.listdir(self.directory)
        space = os.statvfs(self.directory)
        return Usage(
            checkpoints=len(self.names()),
            drafts=sum(name.startswith(_DRAFT) for name in names),
            size=_disk_size(self.directory),
            free=space.f_bavail * space.f_frsize,
        )

    # ---- inside

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _publish(self, draft: Draft) -> None:
        with self._locked():
            self._refuse_taken(draft.name)
            os.rename(draft.path, self._path(draft.name))
            sync_directory(self.directory)

    def _refuse_taken(self, name: str) -> None:
        if os.path.lexists(self._path(name)):
            raise Conflict(
                doing="taking the name",
                target=name,
                why="there is a checkpoint of that name",
                hint="remove it or choose another name",
            )

    def _open(self, name: str, doing: str) -> int:
        check_name(name)
        try:
            return open_directory(self._path(name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                doing=doing, target=f"checkpoint {name}", why="there is none of that name"
            ) from error
        except OSError as error:
            raise os_fault(error, doing=doing, target=f"checkpoint {name}") from error

    def _lock_alone(self, name: str, doing: str) -> int:
        fd = self._open(name, doing)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Conflict(
                doing=doing,
                target=f"checkpoint {name}",
                why="it is in use",
                hint="wait until it has been restored or exported",
                retry=True,
            ) from error
        return fd

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The store's lock, waited for: nobody holds it for longer than a rename takes."""
        try:
            fd = os.open(
                os.path.join(self.directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise os_fault(error, doing="locking the store", target=self.directory) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def check_name(name: str) -> None:
    """BadInput unless a checkpoint may be called so."""
    if not NAME.fullmatch(name):
        raise BadInput(
            doing="naming the checkpoint",
            target=repr(name)[:80],
            why="not 1 to 128 letters, digits, '_', '.', '-', the first a letter or digit",
        )


def _disk_size(path: str) -> int:
    """Bytes that a tree occupies (st_blocks counts 512 bytes each); what vanishes is not there."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
