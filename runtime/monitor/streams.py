"""The container's standard streams: pipes whose outer ends the monitor holds.

Only pipes: their inner ends are dumped by CRIU as what they are, and `--inherit-fd fd[N]:pipe:[INODE]` puts a new
pipe of another monitor, maybe on another host, in their place at a restore. The inode names tie the two together, so
they are what a checkpoint remembers of them.
"""

from __future__ import annotations

import os

# Which descriptor inside, and who writes. "status" is the static init's report channel.
ROLES = {
    "stdin": (0, "outside"),
    "stdout": (1, "inside"),
    "stderr": (2, "inside"),
    "status": (3, "inside"),
}


class Streams:
    """The pipes of one process: the container's first (job 0) or a job."""

    def __init__(self, job: int, roles: list[str], uid: int, gid: int) -> None:
        self.job = job
        self.ours: dict[str, int] = {}
        self.theirs: dict[str, int] = {}
        for role in roles:
            read, write = os.pipe2(os.O_CLOEXEC)
            inner, outer = (read, write) if ROLES[role][1] == "outside" else (write, read)
            os.set_blocking(outer, False)
            if role == "status":
                # A monitor that is gone must not stop the init's reaping.
                os.set_blocking(inner, False)
            # /dev/stdout is opened anew by path: the container's user must own the pipe.
            os.fchown(inner, uid, gid)
            self.ours[role] = outer
            self.theirs[role] = inner

    def inside(self, *, terminal: bool) -> dict[int, int]:
        """{descriptor inside: ours}; -1 is the container's /dev/null. A terminal has one output."""
        fds = {0: self.theirs.get("stdin", -1), 1: self.theirs["stdout"]}
        fds[2] = self.theirs["stdout"] if terminal else self.theirs["stderr"]
        if "status" in self.theirs:
            fds[3] = self.theirs["status"]
        return fds

    def describe(self) -> list[dict[str, str | int]]:
        """What a checkpoint must remember: role, job and CRIU's name of each pipe."""
        return [
            {"job": self.job, "role": role, "name": os.readlink(f"/proc/self/fd/{fd}")}
            for role, fd in self.ours.items()
        ]

    def close_theirs(self) -> None:
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def close(self, role: str) -> None:
        fd = self.ours.pop(role, None)
        if fd is not None:
            os.close(fd)

    def close_all(self) -> None:
        self.close_theirs()
        for role in list(self.ours):
            self.close(role)
