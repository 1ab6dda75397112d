"""Runs on the other machine, before there is a ckpt: looks at it, and installs what was sent.

Sent as text to a bare Python 3, so only the standard library may be imported, and nothing of ours. What it finds or
did goes to standard output as one JSON object; a failure is {"failed": why} and exit status 1.

    far.py look PREFIX
    far.py packages NAME...        with the machine's own apt
    far.py install PREFIX          what lies unpacked in the current directory:
        site/         site-packages of ckpt and all it needs; with it, a virtual environment is made anew
        criu/root/    a CRIU with every library of its own; with it, the private copy is replaced
        units/        systemd units, where systemd is
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OURS = ("ckpt", "images", "runtime", "transport")
OLDEST_PYTHON = (3, 11)
OLDEST_CRIU = (4, 1)
ENGLISH = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """One line."""


def call(*argv: str | Path, seconds: float = 900) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=ENGLISH,
        timeout=seconds,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"^E: |[Ee]rror", line)]
        why = "; ".join((errors or lines[-1:])[:2]) or f"status {done.returncode}"
        raise Failed(f"{Path(argv[0]).name}: {why}")
    return done.stdout


# --- what is there --------------------------------------------------------------------------------


def places(prefix: Path) -> tuple[Path, Path]:
    """The virtual environment and the command: the same as scripts/install's."""
    return prefix / "lib/ckpt/venv", prefix / "bin/ckpt"


def criu_prefix() -> Path:
    return Path(os.environ.get("CKPT_CRIU_PREFIX", "/usr/local/lib/ckpt/criu"))


def digest(folder: Path) -> str:
    """Of our packages below FOLDER: what they do, not when they were copied. "" when there are none."""
    if not (folder / OURS[0]).is_dir():
        return ""
    whole = hashlib.sha256()
    for name in OURS:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                whole.update(f"{path.relative_to(folder)} {content}\n".encode())
    return whole.hexdigest()


def site_of(venv: Path) -> Path:
    sites = sorted(venv.glob("lib/python3*/site-packages"))
    return sites[-1] if sites else venv / "none"


def answers(venv: Path) -> str:
    """What the installed ckpt says of its version; "" when it can't."""
    try:
        return call(venv / "bin/ckpt", "--version", seconds=120).strip()
    except (OSError, Failed, subprocess.TimeoutExpired):
        return ""


def version_of(criu: Path | str) -> str:
    try:
        found = re.search(r"Version:\s*(\d+(?:\.\d+)*)", call(criu, "--version", seconds=60))
    except (OSError, Failed, subprocess.TimeoutExpired):
        return ""
    return found[1] if found else ""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def criu_in_use() -> dict[str, str]:
    """The one that ckpt would take: the order is runtime/criu/binary.py's."""
    on_path = shutil.which("criu", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    for path in (os.environ.get("CKPT_CRIU"), criu_prefix() / "criu", on_path):
        if path and Path(path).exists():
            version = version_of(path)
            if numbers(version) >= OLDEST_CRIU:
                return {"path": str(path), "version": version}
    return {"path": "", "version": ""}


def missing_packages() -> list[str]:
    """Debian packages whose content isn't there, however it would have come."""
    programs = {"ssh": "openssh-client", "nft": "nftables", "ip": "iproute2", "cc": "gcc"}
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    found = [package for name, package in programs.items() if not shutil.which(name, path=path)]
    if not [*Path("/usr").glob("lib*/libc.a"), *Path("/usr").glob("lib/*/libc.a")]:
        found.append("libc6-dev")
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        found.append("libseccomp2")
    return found


def look(prefix: Path) -> dict[str, Any]:
    venv, command = places(prefix)
    release = Path("/etc/os-release")
    text = release.read_text(errors="replace") if release.exists() else ""
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.M)
    return {
        "uid": os.geteuid(),
        "system": name[1] if name else platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": list(sys.version_info[:2]),
        "missing": missing_packages(),
        "apt": shutil.which("apt-get") is not None,
        "code": digest(site_of(venv)),
        "answers": answers(venv),
        "foreign": (command.exists() or command.is_symlink()) and not is_ours(command, venv),
        "criu": criu_in_use(),
    }


def is_ours(command: Path, venv: Path) -> bool:
    return command.is_symlink() and os.readlink(command) == str(venv / "bin/ckpt")


# --- changing it ----------------------------------------------------------------------------------


def packages(names: list[str]) -> dict[str, Any]:
    install = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install"]
    install += ["--no-install-recommends", *names]
    try:
        call(*install)
    except Failed:
        # The lists may be old, or missing.
        call("apt-get", "-q", "update")
        call(*install)
    return {"installed": names}


def install(prefix: Path) -> dict[str, Any]:
    here = Path.cwd()
    done = []
    if (here / "criu/root").is_dir():
        done.append(install_criu(here / "criu"))
    if (here / "site").is_dir():
        done.append(install_code(here / "site", prefix))
    elif done and site_of(places(prefix)[0]).is_dir():
        link_pycriu(site_of(places(prefix)[0]))
    if (here / "units").is_dir() and shutil.which("systemctl", path=SYSTEM_PATH):
        done += install_units(here / "units", prefix)
    return {"did": done}


def swap(new: Path, place: Path) -> None:
    """NEW takes PLACE; what uses the old one goes on with the files that it has open."""
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def install_code(site: Path, prefix: Path) -> str:
    """A virtual environment without pip: the tree is complete already. Python compiles what root imports."""
    venv, command = places(prefix)
    if (command.exists() or command.is_symlink()) and not is_ours(command, venv):
        raise Failed(f"{command} is there and belongs to another installation")
    new = venv.with_name("venv.new")
    shutil.rmtree(new, ignore_errors=True)
    library = new / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    library.mkdir(parents=True)
    base = Path(os.path.realpath(sys.executable))
    (new / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
        f"version = {platform.python_version()}\n"
    )
    (new / "bin").mkdir()
    (new / "bin/python3").symlink_to(base)
    (new / "bin/python").symlink_to("python3")
    shutil.move(site, library / "site-packages")
    script = new / "bin/ckpt"
    script.write_text(
        f"#!{venv}/bin/python3\nimport sys\nfrom ckpt.__main__ import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    link_pycriu(library / "site-packages")
    swap(new, venv)
    command.parent.mkdir(parents=True, exist_ok=True)
    fresh = command.with_name(f".ckpt-{os.getpid()}.new")
    fresh.symlink_to(venv / "bin/ckpt")
    fresh.rename(command)
    if not answers(venv):
        call(venv / "bin/ckpt", "--version")  # raises, with the reason
    return f"{command}"


def link_pycriu(site: Path) -> None:
    """The one that belongs to the CRIU in use: in its own tree, else Debian's."""
    packages_of = "usr/lib/python3/dist-packages/pycriu"
    for place in (criu_prefix() / "root" / packages_of, Path("/") / packages_of):
        if (place / "rpc_pb2.py").exists():
            link = site / "pycriu"
            if link.is_symlink():
                link.unlink()
            link.symlink_to(place)
            return
    raise Failed("there is no pycriu for the CRIU here: apt install python3-pycriu")


def install_criu(tree: Path) -> str:
    """As scripts/setup-criu makes it: CRIU started through the dynamic loader of its own tree."""
    place = criu_prefix()
    if place.exists() and not (place / "ORIGIN").exists():
        raise Failed(f"{place} is there and was not made by ckpt")
    root = tree / "root"
    loaders = sorted(root.glob("usr/lib*/**/ld-linux*.so.*"))
    if not loaders:
        raise Failed("what was sent holds no dynamic loader")
    libraries = sorted({str(file.parent) for file in root.glob("usr/lib/**/*.so*")})
    words = [str(loaders[0]), "--library-path", ":".join(libraries), "--argv0", "criu"]
    words.append(str(root / "usr/sbin/criu"))
    if not version_of_words(words):
        raise Failed("the CRIU that was sent doesn't run here")
    line = " ".join(word.replace(str(tree), str(place)) for word in words)
    (tree / "criu").write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    (tree / "criu").chmod(0o755)
    new = place.with_name(f"{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tree, new)
    swap(new, place)
    return f"{place}/criu {version_of(place / 'criu')}"


def version_of_words(words: list[str]) -> bool:
    try:
        return "Version" in call(*words, "--version", seconds=120)
    except (OSError, Failed):
        return False


def install_units(folder: Path, prefix: Path) -> list[str]:
    """None is enabled; systemd is told when something changed."""
    place = prefix / "lib/systemd/system"
    place.mkdir(parents=True, exist_ok=True)
    done = []
    for unit in sorted(folder.iterdir()):
        text = unit.read_text().replace("@PREFIX@", str(prefix))
        target = place / unit.name
        if not target.exists() or target.read_text() != text:
            fresh = target.with_name(f".{unit.name}.new")
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.rename(target)
            done.append(str(target))
    if done and Path("/run/systemd/system").is_dir():
        call("systemctl", "daemon-reload")
    return done


def main(words: list[str]) -> int:
    os.umask(0o022)
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise Failed(f"Python {platform.python_version()} is older than 3.11")
        began = time.monotonic()
        if words[0] == "look":
            found = look(Path(words[1]))
        elif words[0] == "packages":
            found = packages(words[1:])
        elif words[0] == "install":
            found = install(Path(words[1]))
        else:
            raise Failed(f"{words[0]}: no such command")
        found["seconds"] = round(time.monotonic() - began, 1)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(json.dumps({"failed": str(error)}))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
