"""Small root file systems made of what Debian has installed on this machine.

    program_rootfs(directory, ["/usr/bin/redis-server"])     any program, with all that it links
    redis(directory), python(directory), nginx(directory), postgresql(directory), node(directory)

Each makes DIRECTORY (refusing one that has something in it) and returns it. The tree needs no
network and no package manager to build, is the same each time, and its files belong to root but for
what a service has to write. busybox gives it a shell and the common tools.

A program brings its ELF interpreter and its libraries as ldd(1) finds them, at the very paths where
they lie here. What a program opens by itself later (modules, time zones, a standard library) ldd
can't know: the ready-made trees name it.

Needs root (owners), and no pytest. Raises Missing for a program that isn't installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = [
    "BUILDERS",
    "Missing",
    "nginx",
    "node",
    "postgresql",
    "program_rootfs",
    "python",
    "redis",
]

# As on every Debian since 12: the old directories are links into /usr.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DIRECTORIES = {
    "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755,
    "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr/bin": 0o755, "usr/sbin": 0o755,
    "usr/lib": 0o755, "usr/lib64": 0o755, "var/cache": 0o755, "var/lib": 0o755, "var/log": 0o755,
    "var/tmp": 0o1777,
}  # fmt: skip
_USERS = {"root": 0, "daemon": 1, "www-data": 33, "nobody": 65534}
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

File = str | bytes | Path


class Missing(Exception):
    """Something which the tree needs isn't installed on this machine."""


def program_rootfs(
    directory: Path,
    programs: Iterable[str | Path],
    *,
    files: Mapping[str, File] = {},
    trees: Iterable[str | Path] = (),
    users: Mapping[str, int] = {},
    owned: Mapping[str, str] = {},
) -> Path:
    """A root file system in DIRECTORY with PROGRAMS (names or paths) and busybox.

    FILES: path in the tree → its text, its bytes, or the file of this machine to copy. What starts
    with "#!" may be executed. TREES: directories of this machine, copied to the same path, with
    what their shared objects link. USERS: further users (name → uid; a group of the same name and
    number goes with each). OWNED: directories to make, path → the user who owns them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} isn't empty")
    directory.chmod(0o755)
    _skeleton(directory)
    everyone = {**_USERS, **users}
    _accounts(directory, everyone)
    shell = find("busybox")
    _busybox(directory, shell)
    wanted = [find(program) for program in programs]
    for program in wanted:
        _copy(directory, program)
    objects = [_real(program) for program in wanted]
    for tree in trees:
        objects += _copy_tree(directory, Path(tree))
    for library in _closure(objects):
        _copy(directory, library)
    for path, content in files.items():
        _write(directory, path, content)
    for path, owner in owned.items():
        place = _inside(directory, Path(path))
        place.mkdir(parents=True, exist_ok=True)
        os.chown(place, everyone[owner], everyone[owner])
    return directory


# --- ready-made -----------------------------------------------------------------------------------


def redis(directory: Path) -> Path:
    """redis-server and redis-cli; /data is for user redis (999)."""
    return program_rootfs(
        directory,
        ["redis-server", "redis-cli"],
        users={"redis": 999},
        owned={"/data": "redis"},
    )


def python(directory: Path, *, files: Mapping[str, File] = {}) -> Path:
    """The distribution's /usr/bin/python3 with its standard library (no test suite, no Tk)."""
    interpreter = _real(find("/usr/bin/python3"))
    library = Path("/usr/lib") / interpreter.name
    if not library.is_dir():
        raise Missing(f"{library} isn't there: apt install python3")
    program_rootfs(
        directory,
        [interpreter],
        trees=[library],
        files=files,
    )
    _link(directory, "/usr/bin/python3", interpreter.name)
    return directory


def nginx(directory: Path) -> Path:
    """nginx on port 80 (IPv4 and IPv6) in the foreground, two workers as www-data.

    Serves /var/www/html, whose index.html says "hello"; /status is nginx's own.
    """
    program = find("nginx")
    config = """\
daemon off;
user www-data;
worker_processes 2;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
    include mime.types;
    default_type application/octet-stream;
    access_log off;
    keepalive_timeout 3600;
    keepalive_requests 1000000000;
    server {
        listen 80;
        listen [::]:80;
        root /var/www/html;
        location = /status { stub_status; }
    }
}
"""
    return program_rootfs(
        directory,
        [program],
        files={
            "/etc/nginx/nginx.conf": config,
            "/etc/nginx/mime.types": Path("/etc/nginx/mime.types"),
            "/var/www/html/index.html": "hello\n",
        },
        owned={
            "/var/lib/nginx": "www-data",
            **{
                f"/var/lib/nginx/{name}": "www-data"
                for name in ("body", "fastcgi", "proxy", "scgi", "uwsgi")
            },
            "/var/log/nginx": "root",
        },
    )


def postgresql(directory: Path, *, cluster: bool = True) -> Path:
    """The newest installed PostgreSQL; its programs are in /usr/local/bin too.

    With CLUSTER there is a fresh one in /data (user postgres, 105; trust for everybody, listening
    on all addresses): `postgres -D /data`, to be run as user postgres.
    """
    versions = [p for p in Path("/usr/lib/postgresql").glob("*") if (p / "bin/postgres").exists()]
    if not versions:
        raise Missing("no PostgreSQL server: apt install postgresql")
    home = max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    names = ["postgres", "initdb", "pg_ctl", "pg_isready", "psql", "pgbench", "createdb"]
    program_rootfs(
        directory,
        [home / "bin" / name for name in names],
        trees=[
            home / "lib",
            Path("/usr/share/postgresql") / home.name,
            "/usr/share/zoneinfo",
            *existing("/usr/lib/locale/C.utf8"),
        ],
        users={"postgres": 105},
        owned={"/data": "postgres"},
    )
    (directory / "data").chmod(0o700)
    for name in names:
        _link(directory, f"/usr/local/bin/{name}", str(home / "bin" / name))
    if cluster:
        _chroot(
            directory,
            105,
            f"{home}/bin/initdb", "-D", "/data", "-U", "postgres", "--auth=trust", "--no-sync",
            "--locale=C.UTF-8" if existing("/usr/lib/locale/C.utf8") else "--locale=C",
            "--encoding=UTF8",
        )  # fmt: skip
        with (directory / "data/postgresql.conf").open("a") as config:
            config.write("listen_addresses = '*'\nunix_socket_directories = '/tmp'\n")
        with (directory / "data/pg_hba.conf").open("a") as access:
            access.write("host all all all trust\n")
    return directory


def node(directory: Path, *, files: Mapping[str, File] = {}) -> Path:
    """Node.js, Debian's own or the one on PATH, as /usr/bin/node."""
    program = _real(find("node"))
    # Debian's build reads these built-in modules from files.
    builtins = ("acorn", "acorn-walk", "cjs-module-lexer", "undici")
    program_rootfs(
        directory,
        [program],
        trees=existing(*(f"/usr/share/nodejs/{name}" for name in builtins)),
        files={**{str(p): p for p in existing("/etc/ssl/openssl.cnf")}, **files},
    )
    if str(program) != "/usr/bin/node":
        _link(directory, "/usr/bin/node", str(program))
    return directory


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "redis": redis,
    "python": python,
    "nginx": nginx,
    "postgresql": postgresql,
    "node": node,
}


def built(cache: Path, name: str) -> Path:
    """The ready-made tree NAME, made below CACHE when it isn't there yet. Treat it as read-only."""
    place = cache / name
    if not place.exists():
        temp = cache / f".{name}.new"
        if temp.exists():
            shutil.rmtree(temp)
        BUILDERS[name](temp).rename(place)
    return place


# --- finding --------------------------------------------------------------------------------------


def find(program: str | Path) -> Path:
    """The path of PROGRAM. The distribution's own directories come before PATH, where version
    managers put scripts in front of the programs."""
    if "/" in str(program):
        if os.access(program, os.X_OK):
            return Path(program)
        raise Missing(f"{program} isn't there")
    for search in ("/usr/sbin:/usr/bin:/sbin:/bin", os.environ.get("PATH", "")):
        if found := shutil.which(str(program), path=search):
            return Path(found)
    raise Missing(f"{program} isn't installed")


def existing(*paths: str) -> list[Path]:
    return [Path(path) for path in paths if Path(path).exists()]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _closure(objects: Iterable[Path]) -> list[Path]:
    """The interpreter and the libraries of all OBJECTS, under the names by which they are looked up."""
    found: set[str] = set()
    wanted = [str(path) for path in objects if _is_elf(path)]
    for start in range(0, len(wanted), 50):
        # One ldd for many: it is a shell script that starts each program's own loader.
        done = subprocess.run(
            ["ldd", *wanted[start : start + 50]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": _SEARCH, "LC_ALL": "C"},
        )
        if missing := re.findall(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE):
            raise Missing(f"a library isn't installed: {missing[0]}")
        found.update(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE))
    return [Path(path) for path in sorted(found)]


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


# --- building -------------------------------------------------------------------------------------


def _skeleton(root: Path) -> None:
    for path, mode in _DIRECTORIES.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path).chmod(mode)
    for name in _MERGED:
        if Path("/", name).exists():
            (root / "usr" / name).mkdir(exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    (root / "var/lock").symlink_to("/run")


def _accounts(root: Path, users: Mapping[str, int]) -> None:
    homes = {"root": "/root"}
    shells = {"root": "/bin/sh"}
    passwd = [
        f"{name}:x:{uid}:{uid}::{homes.get(name, '/')}:{shells.get(name, '/usr/sbin/nologin')}"
        for name, uid in users.items()
    ]
    groups = [f"{name}:x:{uid}:" for name, uid in users.items()]
    _write(root, "/etc/passwd", "\n".join([*passwd, ""]))
    _write(root, "/etc/group", "\n".join([*groups, ""]))
    _write(root, "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")


def _busybox(root: Path, program: Path) -> None:
    if _closure([program]):
        raise Missing(f"{program} isn't static: apt install busybox-static")
    _copy(root, program)
    listed = subprocess.run(
        [program, "--list"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if name != "busybox" and not (root / "usr/bin" / name).exists():
            _link(root, f"/usr/bin/{name}", "busybox")


def _inside(root: Path, path: Path) -> Path:
    """Where PATH of this machine lies in the tree: links in its directory part are followed, so
    that /lib/x and /usr/lib/x are one file, as here."""
    absolute = Path("/") / path
    parent = _real(absolute.parent) if absolute.parent.exists() else absolute.parent
    if parent.parts[1:2] and parent.parts[1] in _MERGED:
        parent = Path("/usr", *parent.parts[1:])
    return root / parent.relative_to("/") / absolute.name


def _copy(root: Path, source: Path) -> None:
    """SOURCE's content under SOURCE's name, and under the name it is a link to."""
    for name in {source, _real(source)}:
        place = _inside(root, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        if not place.exists():
            shutil.copyfile(source, place)
            place.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


_LEFT_OUT = {
    # Byte code that isn't there yet would be written into the upper directory on each import:
    # what the distribution compiled is kept. Test suites, Tk and LLVM's bit code are large and
    # never used.
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "bitcode",
    "dist-packages", "site-packages", "llvmjit.so", "llvmjit_types.bc", "man", "pgxs",
    "posix", "right",
}  # fmt: skip


def _copy_tree(root: Path, source: Path) -> list[Path]:
    """Copy SOURCE to the same path; returns the ELF objects in it."""
    if not source.is_dir():
        raise Missing(f"{source} isn't there")
    objects = []
    for folder, folders, names in os.walk(source, followlinks=True):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in names:
            file = Path(folder, name)
            if name in _LEFT_OUT or name.endswith(".a") or not file.is_file():
                continue
            place = _inside(root, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
            os.chown(place, 0, 0)
            if _is_elf(file):
                objects.append(file)
    return objects


def _write(root: Path, path: str, content: File) -> None:
    place = _inside(root, Path(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        content = content.read_bytes()
    raw = content.encode() if isinstance(content, str) else content
    place.write_bytes(raw)
    place.chmod(0o755 if raw.startswith((b"#!", b"\x7fELF")) else 0o644)


def _link(root: Path, path: str, target: str) -> None:
    place = _inside(root, Path(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    place.symlink_to(target)


def _chroot(root: Path, uid: int, *argv: str) -> None:
    """Run a program as UID in the tree, with the machine's /dev, which goes with the mount namespace."""
    script = 'mount --rbind /dev "$1/dev" && shift && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh", str(root)]
    done = subprocess.run(
        [*prefix, "chroot", f"--userspec={uid}:{uid}", str(root), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": _SEARCH, "LC_ALL": "C", "HOME": "/"},
    )
    if done.returncode:
        raise Missing(f"{argv[0]} in {root}: {done.stdout.strip()[-500:]}")
