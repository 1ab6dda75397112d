"""What guests get on their second disk: this checkout as it is, and wheels of all that pip would fetch.

Guests have no package registry. pip looks into a directory instead when PIP_NO_INDEX and PIP_FIND_LINKS
say so, and nothing else of the installation changes. The wheels are for the guest's Python, which is
seldom this machine's; pip downloads them here the ordinary way, once per list of requirements.

CKPT_VM_COMMIT names a commit to take instead of the working tree, for when somebody is editing it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.vm.image import CannotBuild
from tests.vm.settings import CACHE, REPO

log = logging.getLogger(__name__)

WHEELS = "/lab/wheels"
CHECKOUT = "/lab/ckpt"
PIP = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_CACHE_DIR": "1"}
_KEPT = 3
_NOT_THERE = ("docs/", "tests/vm/", ".ci/")
"""Nothing in a guest reads these: a change there is no reason to install anew, which takes minutes."""


def cargo(python: str) -> Path:
    """A file system image for guests with PYTHON ("3.13"), made if anything changed. Raises CannotBuild."""
    wheels = wheels_for(python)
    if commit := os.environ.get("CKPT_VM_COMMIT"):
        with tempfile.TemporaryDirectory(prefix=f".commit-{os.getpid()}-", dir=CACHE) as folder:
            files = _extract(commit, Path(folder))
            return _made(Path(folder), files, wheels)
    return _made(REPO, checkout_files(), wheels)


def _extract(commit: str, folder: Path) -> list[str]:
    """Put a commit's files into FOLDER; returns their paths in it."""
    archive = ["git", "-C", str(REPO), "archive", commit]
    packed = subprocess.run(archive, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-xf", "-", "-C", str(folder)], input=packed, check=True)
    paths = (path for path in folder.rglob("*") if path.is_file())
    return _wanted(str(path.relative_to(folder)) for path in paths)


def _made(source: Path, files: list[str], wheels: Path) -> Path:
    key = _digest(source, files, wheels.name)
    place = CACHE / f"cargo-{key}.img"
    if not place.exists():
        tree = CACHE / f".cargo-{os.getpid()}"
        new = tree.with_suffix(".img")
        try:
            _fill(tree, source, files, wheels)
            _pack(tree, new)
            new.rename(place)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
            new.unlink(missing_ok=True)
        _forget_old()
    os.utime(place)
    return place


def checkout_files() -> list[str]:
    """Paths of the working tree's files, ignored ones and _NOT_THERE left out, relative to it."""
    command = ["git", "-C", str(REPO), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _wanted(name for name in listed.split("\0") if name and (REPO / name).is_file())


def _wanted(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith(_NOT_THERE))


def _digest(source: Path, files: list[str], *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for name in files:
        mode = (source / name).stat().st_mode & 0o111
        digest.update(
            f"{name}\0{mode}\0".encode() + hashlib.sha256((source / name).read_bytes()).digest()
        )
    return digest.hexdigest()[:12]


def _fill(tree: Path, source: Path, files: list[str], wheels: Path) -> None:
    shutil.copytree(wheels, tree / "wheels")
    for name in files:
        place = tree / "ckpt" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, place)


def _pack(tree: Path, place: Path) -> None:
    used = sum(path.stat().st_size + 4096 for path in tree.rglob("*")) >> 20
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"]
    command += ["-E", "root_owner=0:0", "-d", str(tree), str(place), f"{used * 5 // 4 + 24}M"]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotBuild(f"mke2fs: {done.stderr.strip()}")


def _forget_old() -> None:
    made = sorted(CACHE.glob("cargo-*.img"), key=lambda path: path.stat().st_mtime)
    for old in made[:-_KEPT]:
        old.unlink()


def requirements() -> list[str]:
    """What `make install` and the tests need from PyPI: pyproject.toml's lists, build system included."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    lists = [
        project["build-system"]["requires"],
        project["project"]["dependencies"],
        project["project"]["optional-dependencies"]["test"],
    ]
    return sorted({requirement for one in lists for requirement in one})


def wheels_for(python: str) -> Path:
    """A directory of wheels for PYTHON."""
    wanted = requirements()
    key = hashlib.sha256(json.dumps([python, wanted]).encode()).hexdigest()[:12]
    folder = CACHE / f"wheels-{python}-{key}"
    if not folder.exists():
        log.info("downloading wheels for Python %s", python)
        new = CACHE / f".wheels-{os.getpid()}"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
        command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
        for platform in ("manylinux_2_28_x86_64", "manylinux2014_x86_64"):
            command += ["--platform", platform]
        done = subprocess.run(
            [*command, "--dest", str(new), *wanted], capture_output=True, text=True, check=False
        )
        if done.returncode:
            shutil.rmtree(new, ignore_errors=True)
            reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise CannotBuild(f"no wheels for Python {python}: {(reason or ['pip failed'])[-1]}")
        new.rename(folder)
    return folder
