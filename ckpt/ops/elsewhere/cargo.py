"""What is sent to another machine: this ckpt, the libraries it needs there, this CRIU.

Nothing is fetched over there. Libraries are this environment's own files when the other machine has the same version of
Python; for another one pip fetches wheels here. CRIU goes with every library that it needs, libc and the dynamic loader
included, so that the other machine's distribution doesn't matter (scripts/setup-criu does the same for Debian 12).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import ckpt
from ckpt.ops.elsewhere import far
from runtime.criu.binary import Criu
from runtime.errors import NotFound, Unsupported
from runtime.programs import run

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_FETCHING = 900.0
_OUR_DISTRIBUTION = "ckpt"
_PYCRIU = "usr/lib/python3/dist-packages/pycriu"


def own_folder() -> Path:
    """Where our packages are: a checkout, or an installed copy."""
    return Path(ckpt.__file__).resolve().parent.parent


def own_digest() -> str:
    return far.digest(own_folder())


# ---- code and libraries


def fill_site(site: Path, python: tuple[int, int]) -> None:
    """Put our packages, and all that they need with PYTHON, into SITE. Raises NotFound, SystemFault."""
    site.mkdir(parents=True)
    for name in far.OURS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(own_folder() / name, site / name, ignore=ignored)
    mine = importlib.metadata.distribution(_OUR_DISTRIBUTION)
    info = site / f"ckpt-{mine.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(mine.read_text("METADATA") or "")
    if python == sys.version_info[:2]:
        for distribution in _needed():
            _copy(distribution, site)
    else:
        _fetch(site, python)


def _requirements(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """Names of what it needs; not what its extras need, nor what is for other systems or older Pythons."""
    for line in distribution.requires or ():
        name, _, marker = line.partition(";")
        if "extra ==" not in marker and (found := re.match(r"[A-Za-z0-9._-]+", name)):
            yield found[0]


def _needed() -> list[importlib.metadata.Distribution]:
    """What ckpt needs and what that needs, as installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = list(_requirements(importlib.metadata.distribution(_OUR_DISTRIBUTION)))
    while wanted:
        name = wanted.pop()
        if name.lower() in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # its marker excludes this machine, and so the other one
        found[name.lower()] = distribution
        wanted += _requirements(distribution)
    return list(found.values())


def _copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        # Scripts are beside site-packages; compiled code is made over there.
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site.joinpath(*file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), target)


def _fetch(site: Path, python: tuple[int, int]) -> None:
    version = ".".join(map(str, python))
    if importlib.util.find_spec("pip") is None:
        raise NotFound(
            doing="fetching libraries for",
            target=f"Python {version}",
            why=f"this environment has no pip, and its own libraries are for {sys.version_info[0]}."
            f"{sys.version_info[1]}",
            hint="run it from a ckpt that `make install` or `make setup` has made",
        )
    wanted = [
        line
        for line in importlib.metadata.distribution(_OUR_DISTRIBUTION).requires or ()
        if "extra ==" not in line
    ]
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    argv += ["--target", str(site), "--no-compile", "--only-binary=:all:"]
    argv += ["--python-version", version, "--implementation", "cp"]
    argv += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    run([*argv, *wanted], what=f"fetching libraries for Python {version} with", timeout=_FETCHING)


# ---- CRIU


def fill_criu(tree: Path, criu: Criu) -> None:
    """A copy of CRIU with all that it needs in TREE/root. Raises NotFound, Unsupported, SystemFault."""
    root = tree / "root"
    private = Path(criu.path).parent / "root"
    if (private / "usr/sbin/criu").exists():
        shutil.copytree(private, root, symlinks=True)
    else:
        _gather(Path(criu.path).resolve(), root)
    (tree / "ORIGIN").write_text(f"criu {criu.text} from another host, by ckpt host setup\n")


def _gather(program: Path, root: Path) -> None:
    """PROGRAM, its libraries and pycriu, from where this machine's distribution has put them."""
    said = run(["ldd", str(program)], what="asking for the libraries of").stdout.decode()
    libraries = [Path(found) for found in re.findall(r"(/\S+) \(0x", said)]
    if not any(library.name.startswith("ld-linux") for library in libraries):
        raise Unsupported(
            doing="copying",
            target=str(program),
            why="it has no dynamic loader of its own to be started through",
            hint="set CKPT_CRIU to an ordinary CRIU",
        )
    for folder in ("usr/sbin", "usr/lib", str(Path(_PYCRIU).parent)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(program, root / "usr/sbin/criu")
    for library in libraries:
        shutil.copy(library, root / "usr/lib" / library.name)
    found = importlib.util.find_spec("pycriu")
    if found is None or found.origin is None:
        raise NotFound(doing="copying", target="pycriu", why="it is not installed here")
    source = Path(found.origin).resolve().parent
    shutil.copytree(source, root / _PYCRIU, ignore=shutil.ignore_patterns("__pycache__"))


# ---- units


def unit_files() -> list[Path]:
    """systemd units: a checkout's, else those that were installed beside us."""
    checkout = own_folder() / "packaging/systemd"
    # PREFIX/lib/ckpt/venv
    installed = Path(sys.prefix).parent.parent / "systemd/system"
    folder = checkout if checkout.is_dir() else installed
    return sorted(folder.glob("ckpt-*")) if folder.is_dir() else []


def fill_units(folder: Path) -> None:
    folder.mkdir()
    for unit in unit_files():
        text = unit.read_text()
        # Installed ones name this machine's prefix; the checkout's have a mark there.
        text = text.replace(
            f"{Path(sys.prefix).parent.parent.parent}/bin/ckpt", "@PREFIX@/bin/ckpt"
        )
        (folder / unit.name).write_text(text)


# ---- all of it


def pack(folder: Path, archive: Path) -> int:
    """Everything in FOLDER as ARCHIVE, .tar.gz; its size in bytes."""

    def cleaned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(folder, arcname=".", filter=cleaned)
    return archive.stat().st_size
