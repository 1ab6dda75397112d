"""One ckpt host on this machine for a test: a root directory, a small root file system, and the command line.

    def test_...(box):
        box.run("--name", "web", "-d", box.rootfs, "--", "sleep", "1000")
        assert box.one("web")["state"] == "running"

The root file system is busybox and a few files: it is imported in milliseconds and has what a test
asks about (id, mount, nc, httpd, stty). Whatever the test leaves running is removed at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.needs import find_tool
from tests.patience import patient

REPO = Path(__file__).resolve().parents[2]
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/home/web:/bin/sh\n"
_GROUP = "root:x:0:\nweb:x:33:\nextra:x:44:web\nmore:x:45:web\n"


def make_rootfs(where: Path) -> Path:
    """A directory with a static busybox, its links, users and the usual directories."""
    for name in ("bin", "etc", "tmp", "home/web", "root", "var", "mnt", "dev", "proc", "sys"):
        (where / name).mkdir(parents=True)
    (where / "tmp").chmod(0o1777)
    program = where / "bin/busybox"
    shutil.copy2(find_tool("busybox") or "busybox", program)
    for applet in subprocess.check_output([program, "--list"], text=True).split():
        if applet != "busybox":
            (where / "bin" / applet).symlink_to("busybox")
    (where / "etc/passwd").write_text(_PASSWD)
    (where / "etc/group").write_text(_GROUP)
    shutil.chown(where / "home/web", 33, 33)
    return where


class Box:
    """The host. Every command is a real `ckpt` process."""

    def __init__(self, root: Path, rootfs: Path) -> None:
        self.root = root
        self.rootfs = rootfs
        self.children: list[subprocess.Popen[Any]] = []

    def environment(self) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if k not in ("CKPT_ROOT", "PYTHONPATH")}
        return {**mine, "CKPT_ROOT": str(self.root)}

    def argv(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "ckpt", *map(str, words)]

    def call(self, *words: object, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command to its end whatever its status; text unless OPTIONS say otherwise."""
        options = {"capture_output": True, "text": True, "timeout": 100, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(self.argv(*words), cwd=REPO, env=self.environment(), **options)

    def __call__(self, *words: object, **options: Any) -> str:
        """Run a command that must succeed; its output."""
        done = self.call(*words, **options)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return str(done.stdout)

    def fails(self, code: int, *words: object, **options: Any) -> str:
        """Run a command that must fail with CODE; what it says, in one line."""
        done = self.call(*words, **options)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        said = [line for line in done.stderr.splitlines() if line != "  trying again makes sense"]
        assert len(said) == 1, done.stderr
        return said[0]

    def popen(self, *words: object, **options: Any) -> subprocess.Popen[Any]:
        """Start a command; killed at the end if it still runs."""
        options = {"stdin": subprocess.DEVNULL, **options}
        process = subprocess.Popen(self.argv(*words), cwd=REPO, env=self.environment(), **options)
        self.children.append(process)
        return process

    def sh(self, script: str, *flags: object, **options: Any) -> str:
        """What a shell script prints in a new container that is removed again."""
        return self(
            "run",
            "--rm",
            "--network",
            "none",
            *flags,
            self.rootfs,
            "--",
            "sh",
            "-c",
            script,
            **options,
        )

    def up(self, name: str, *flags: object, args: Sequence[str] = ("sleep", "1000")) -> None:
        """A container that runs ARGS in the background, without a network unless FLAGS say so."""
        network = () if "--network" in flags else ("--network", "none")
        self("run", "-d", "--name", name, *network, *flags, self.rootfs, "--", *args)

    def one(self, name: str) -> dict[str, Any]:
        """Its line of ps."""
        found = json.loads(self("ps", "-a", "--json"))
        return next(dict(entry) for entry in found if entry["name"] == name)

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self("inspect", name)))

    def names(self) -> list[str]:
        return self("ps", "-a", "-q").split()

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        names = self.call("ps", "-a", "-q").stdout.split()
        if names:
            self.call("rm", "-f", *names)
        until(
            lambda: not self._ending() and not self._with(f"monitor/__main__.py\0{self.root}/run/")
        )

    def _ending(self) -> list[str]:
        """What monitors have called for and is still under way: their last act, help for what was abandoned."""
        return self._with(f"--root\0{self.root}\0internal\0")

    def _with(self, words: str) -> list[str]:
        """Processes that have WORDS, joined by NUL, in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if words.encode() in entry.read_bytes():
                    found.append(entry.parent.name)
        return found


def until(ask: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """Ask again until the answer is true; return it. Generous: the machine may be busy."""
    deadline = time.monotonic() + patient(seconds)
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds} s in vain, last: {answer!r}"
        time.sleep(0.05)


@contextlib.contextmanager
def opened(root: Path, rootfs: Path) -> Iterator[Box]:
    box = Box(root, rootfs)
    try:
        yield box
    finally:
        box.close()
