"""Read-only layers on disk, named by what they hold.

    <dir>/<digest>/fs           the tree, owners as in the source
    <dir>/<digest>/layer.json   where it came from, sizes
    <dir>/.draft-XXXX/          an import on its way; locked while somebody works at it
    <dir>/.seen/                digests of directories and archives imported before
    <dir>/.lock                 shared: somebody relies on layers; exclusive: a layer is removed

A layer appears by a rename, whole, after everything in it is on disk. The directory is closed to
other users: what is set-uid root in a layer must not be within reach of a host's user.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

from runtime.errors import BadInput, Conflict, NotFound, RuntimeFault, from_os_error
from runtime.tree.digest import TreeHasher, digest_of_bytes, tree_digest
from runtime.tree.index import Index, scan
from runtime.tree.kernel import syncfs
from runtime.tree.meta import Meta
from runtime.tree.place import Placer
from runtime.tree.remove import remove_tree

from .archive import unpack
from .copy import Devices, copy_tree
from .limits import Budget, Limits
from .seen import Seen, fingerprint_of_file, fingerprint_of_tree

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_DRAFT = ".draft-"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of a layer without reading it. Sizes in bytes, times in seconds."""

    digest: str
    entries: int
    data_bytes: int
    created: float
    source: str


class LayerStore:
    """The layers below one directory, which is made when it is missing."""

    def __init__(self, directory: str, *, limits: Limits | None = None) -> None:
        self.directory = os.path.abspath(directory)
        self._limits = limits or Limits()
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            os.chmod(self.directory, 0o700)
        except OSError as error:
            raise from_os_error(error, doing="making", target=self.directory) from error
        self._seen = Seen(os.path.join(self.directory, ".seen"))

    # --- what there is ---------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        """Is the layer here? False for what is no digest."""
        return bool(_DIGEST.match(digest)) and os.path.isdir(self._of(digest))

    def path(self, digest: str) -> str:
        """The layer's tree. Raises BadInput for what is no digest, NotFound."""
        self._known(digest, "looking for")
        return os.path.join(self._of(digest), "fs")

    def list(self) -> list[Layer]:
        """All layers, oldest first."""
        found = []
        for name in os.listdir(self.directory):
            if _DIGEST.match(name):
                with contextlib.suppress(NotFound):  # removed meanwhile
                    found.append(self.info(name))
        return sorted(found, key=lambda layer: layer.created)

    def info(self, digest: str) -> Layer:
        """What is known of one layer. Raises BadInput, NotFound."""
        self._known(digest, "looking for")
        file = os.path.join(self._of(digest), "layer.json")
        try:
            with open(file, encoding="utf-8") as record:
                fields = json.load(record)
            return Layer(
                digest,
                int(fields["entries"]),
                int(fields["data_bytes"]),
                float(fields["created"]),
                str(fields["source"]),
            )
        except FileNotFoundError as error:
            raise _missing(digest, "looking for") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(doing="reading", target=file, why=f"it is damaged: {error}") from error

    def verify(self, digest: str) -> None:
        """Read the whole layer. Raises BadInput if it isn't what its name says."""
        found = tree_digest(self.path(digest))
        if found != digest:
            raise BadInput(
                doing="verifying layer",
                target=digest,
                why=f"it was changed: its content has the digest {found}",
                hint="remove it and import it again",
            )

    # --- bringing in -----------------------------------------------------------------------------

    def import_directory(
        self,
        path: str,
        *,
        cross_mounts: bool = False,
        devices: Devices = "refuse",
        exclude: Collection[str] = (),
    ) -> str:
        """Make a layer of a copy of the directory; returns its digest.

        An unchanged directory that was imported before costs a walk. Mount points below it, the
        directories in `exclude` (absolute paths) and this store become empty directories. Raises
        RuntimeFault; then nothing is left behind.
        """
        source = os.path.realpath(path)
        try:
            source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, doing="importing", target=path) from error
        try:
            prune = _identities((self.directory, *exclude))
            index = scan(source_fd, name=source, cross_mounts=cross_mounts, prune=prune)
            mark = fingerprint_of_tree(index, devices)
            known = self._seen.digest(source, mark)
            if known is not None and self.has(known):
                return known

            def fill(target_fd: int, limits: Limits) -> Budget:
                budget = Budget(limits)
                copy_tree(source_fd, source, index, target_fd, budget, devices=devices)
                return budget

            digest = self._make(fill, source)
            self._seen.remember(source, mark, digest, self._youngest(index))
            return digest
        finally:
            os.close(source_fd)

    def import_archive(self, source: str | int | IO[bytes], *, devices: Devices = "refuse") -> str:
        """Make a layer of a tar archive (plain, gzip, zstd): a path, a descriptor or an open
        binary file, read to its end. Returns its digest. Raises RuntimeFault; then nothing is left
        behind."""
        if not isinstance(source, str):
            opened = os.fdopen(source, "rb", closefd=False) if isinstance(source, int) else source
            return self._unpack(opened, "the archive", devices)
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, doing="importing", target=source) from error
        with os.fdopen(fd, "rb") as archive:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                return self._unpack(archive, source, devices)
            place = os.path.realpath(source)
            mark = fingerprint_of_file(st, devices)
            known = self._seen.digest(place, mark)
            if known is not None and self.has(known):
                return known
            digest = self._unpack(archive, source, devices)
            if fingerprint_of_file(os.fstat(fd), devices) == mark:
                self._seen.remember(place, mark, digest, st.st_ctime_ns)
            return digest

    def _unpack(self, archive: IO[bytes], name: str, devices: Devices) -> str:
        return self._make(
            lambda target_fd, limits: unpack(archive, name, target_fd, limits, devices=devices),
            name,
        )

    def ensure_layer_from_files(self, files: Mapping[str, tuple[int, bytes]]) -> str:
        """The layer that holds just these files, {relative path: (mode, content)}, owned by root
        with time 0; made unless it is here. Returns its digest. Raises RuntimeFault."""
        wanted = {os.fsencode(path): content for path, content in files.items()}
        parents = {b""}
        for path in wanted:
            parts = path.split(b"/")
            parents.update(b"/".join(parts[:depth]) for depth in range(1, len(parts)))
        hasher = TreeHasher()
        for path in sorted(parents | wanted.keys()):
            if path in wanted:
                mode, content = wanted[path]
                digest = digest_of_bytes(content)
                hasher.add(path, b"f", Meta(mode, 0, 0, 0), len(content), digest)
            else:
                hasher.add(path, b"d", Meta(0o755, 0, 0, 0))
        if self.has(hasher.hexdigest()):
            return hasher.hexdigest()

        def fill(target_fd: int, limits: Limits) -> Budget:
            budget = Budget(limits)
            placer = Placer(target_fd)
            try:
                for path in sorted(parents):
                    placer.directory(path, Meta(0o755, 0, 0, 0))
                for path, (mode, content) in wanted.items():
                    budget.entry(len(content))
                    fd = placer.new_file(path)
                    with os.fdopen(fd, "wb") as file:
                        file.write(content)
                        file.flush()
                        placer.finish_file(fd, Meta(mode, 0, 0, 0))
                placer.finish()
            except ValueError as error:
                raise BadInput(doing="making", target="a layer", why=str(error)) from error
            finally:
                placer.close()
            return budget

        return self._make(fill, "generated")

    @contextlib.contextmanager
    def adopt(self, digest: str, source: str = "received") -> Iterator[str]:
        """A draft directory to put the tree of layer `digest` into (tree.receive()). When the
        block ends well the tree is verified and published. Raises BadInput if it is another."""
        if not _DIGEST.match(digest):
            raise BadInput(doing="adopting layer", target=digest, why="that is no digest")
        with self._draft() as draft:
            tree = os.path.join(draft, "fs")
            os.mkdir(tree, 0o700)
            yield tree
            found = tree_digest(tree)
            if found != digest:
                raise BadInput(
                    doing="adopting layer",
                    target=digest,
                    why=f"what arrived has the digest {found}",
                )
            self._publish(draft, digest, _counted(tree), source)

    def _make(self, fill: Callable[[int, Limits], Budget], source: str) -> str:
        with self._draft() as draft:
            tree = os.path.join(draft, "fs")
            os.mkdir(tree, 0o700)
            fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                budget = fill(fd, self._limits.within(self.directory))
            finally:
                os.close(fd)
            digest = tree_digest(tree)
            if not self.has(digest):
                self._publish(draft, digest, budget, source)
            return digest

    @contextlib.contextmanager
    def _draft(self) -> Iterator[str]:
        """A directory that is gone afterwards unless it was published; locked, so that a sweep
        by another process knows that somebody works at it."""
        try:
            draft = tempfile.mkdtemp(prefix=_DRAFT, dir=self.directory)
            lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, doing="importing to", target=self.directory) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield draft
        except OSError as error:
            raise from_os_error(error, doing="importing to", target=self.directory) from error
        finally:
            os.close(lock)
            remove_tree(draft)

    def _publish(self, draft: str, digest: str, budget: Budget, source: str) -> None:
        fields: dict[str, Any] = {"format": _FORMAT}
        fields |= asdict(Layer(digest, budget.entries, budget.data, time.time(), source))
        with open(os.path.join(draft, "layer.json"), "w", encoding="utf-8") as record:
            json.dump(fields, record)
        top = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One call for the whole tree: an fsync per file costs minutes for a distribution.
            syncfs(top)
            try:
                os.rename(draft, self._of(digest))
            except OSError:
                # Somebody else made the same layer meanwhile: then it is there, and ours can go.
                if not self.has(digest):
                    raise
            os.fsync(top)
        finally:
            os.close(top)

    # --- taking away -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """No layer is removed inside this block: import, then write down who uses it, in one."""
        with self._lock(fcntl.LOCK_SH):
            yield

    def remove(self, digest: str, referenced: Callable[[str], bool]) -> None:
        """Remove a layer. Raises Conflict if `referenced(digest)`, BadInput, NotFound."""
        self._known(digest, "removing")
        with self._lock(fcntl.LOCK_EX):
            if referenced(digest):
                raise Conflict(
                    doing="removing layer",
                    target=digest,
                    why="a container or checkpoint uses it",
                    hint="remove those first",
                )
            doomed = tempfile.mkdtemp(prefix=_DRAFT, dir=self.directory)
            try:
                # First out of sight, in one step: half a layer is never visible.
                os.rename(self._of(digest), os.path.join(doomed, "layer"))
            except FileNotFoundError as error:
                raise _missing(digest, "removing") from error
            finally:
                remove_tree(doomed)

    def sweep(self) -> int:
        """Delete what interrupted imports and removals left. Returns how many. Drafts that a
        living process works at stay."""
        swept = 0
        for name in os.listdir(self.directory):
            if not name.startswith(_DRAFT):
                continue
            draft = os.path.join(self.directory, name)
            try:
                lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                remove_tree(draft)
                swept += 1
            finally:
                os.close(lock)
        return swept

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        file = os.path.join(self.directory, ".lock")
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    # --- small things ----------------------------------------------------------------------------

    def _of(self, digest: str) -> str:
        return os.path.join(self.directory, digest)

    def _known(self, digest: str, doing: str) -> None:
        if not _DIGEST.match(digest):
            raise BadInput(
                doing=f"{doing} layer", target=digest, why="that is no digest (64 hex digits)"
            )
        if not self.has(digest):
            raise _missing(digest, doing)

    @staticmethod
    def _youngest(index: Index) -> int:
        return max(entry.ctime_ns for entry in index.entries.values())


def _missing(digest: str, doing: str) -> RuntimeFault:
    return NotFound(doing=f"{doing} layer", target=digest, why="it isn't here")


def _identities(paths: Collection[str]) -> frozenset[tuple[int, int]]:
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            st = os.stat(path)
            found.add((st.st_dev, st.st_ino))
    return frozenset(found)


def _counted(tree: str) -> Budget:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        index = scan(fd, name=tree)
    finally:
        os.close(fd)
    budget = Budget(Limits())
    for entry in index.entries.values():
        regular = stat.S_ISREG(entry.mode)
        budget.entry(entry.size if regular else 0)
        budget.written(min(entry.size, entry.blocks * 512) if regular else 0)
    return budget
