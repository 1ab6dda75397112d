"""The kernel's cgroup file system as seen by this package: a handful of file operations.

Everything goes through one object, so that tests can put a tree of their own behind it (see
`fake.py`): a real cgroup2 tree with all controllers isn't to be had on every machine.
"""

from __future__ import annotations

import contextlib
import errno
import os

from runtime.cgroups import device_program
from runtime.cgroups.devices import DevicePolicy

# A cgroup that ckpt made carries this extended attribute. trusted.* is kept by kernfs for both
# versions of the file system, and only CAP_SYS_ADMIN in the first user namespace can set it: what
# runs inside a container can't pass a cgroup off as ours.
MARK = "trusted.ckpt"
NESTED_MARK = "user.ckpt"


class CgroupFs:
    """File operations on a mounted cgroup hierarchy; each raises OSError with the path."""

    def read(self, path: str) -> str:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()

    def write(self, path: str, text: str) -> None:
        # One write(2) without O_CREAT or O_TRUNC: the kernel takes one write as one command.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o755)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def subdirs(self, path: str) -> list[str]:
        """Full paths of the child cgroups of `path`, sorted."""
        with os.scandir(path) as entries:
            return sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))

    def mark(self, path: str) -> None:
        """Note on the cgroup itself that ckpt made it."""
        try:
            os.setxattr(path, MARK, b"1")
        except OSError as error:
            # Not to be had in a nested user namespace; there a v2 tree keeps user.* ones.
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            os.setxattr(path, NESTED_MARK, b"1")

    def marked(self, path: str) -> bool:
        """Whether ckpt made this cgroup."""
        for name in (MARK, NESTED_MARK):
            try:
                os.getxattr(path, name)
                return True
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EPERM, errno.ENOTSUP):
                    raise
        return False

    def attach_devices(self, path: str, policy: DevicePolicy) -> None:
        """Make `policy` the device program of a v2 cgroup."""
        device_program.attach(path, policy)

    # ---- read helpers that are the same for every implementation

    def read_int(self, path: str, *, unlimited: int | None = None) -> int | None:
        """The number in a one-line file; `unlimited` for "max" or -1; None if there is no file."""
        try:
            text = self.read(path).strip()
        except FileNotFoundError:
            return None
        if text in ("max", "-1"):
            return unlimited
        return int(text)

    def read_flat(self, path: str) -> dict[str, int]:
        """A flat keyed file ("key value" per line); {} if there is no such file."""
        try:
            text = self.read(path)
        except (FileNotFoundError, OSError) as error:
            # pressure and some stat files exist but answer EOPNOTSUPP when switched off
            if isinstance(error, FileNotFoundError) or error.errno == errno.EOPNOTSUPP:
                return {}
            raise
        values: dict[str, int] = {}
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            with contextlib.suppress(ValueError):
                values[key] = int(value)
        return values

    def read_nested(self, path: str) -> dict[str, dict[str, str]]:
        """A nested keyed file ("key a=1 b=2" per line); {} if there is no such file."""
        try:
            text = self.read(path)
        except (FileNotFoundError, OSError) as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.EOPNOTSUPP:
                return {}
            raise
        table: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            key, *pairs = line.split()
            table[key] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return table
