"""What a test cannot run without, asked of the machine for real.

    from tests import needs

    @needs.root
    @needs.criu
    @needs.tool("redis-server", "redis-cli")
    def test_...

    pytestmark = [needs.root, needs.netns]      # a whole module

Each is a marker. tests/conftest.py asks the probe behind it just before the test runs, once per
session, and skips with the reason. With CI=true a reason that tests/ci_may_skip.txt doesn't list
makes the test fail instead: what the build machine can do, it has to do.

A probe does the thing itself (makes the namespace, mounts the overlay) rather than reading a
version or a configuration, in a child process where it would change this one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
CGROUP = Path("/sys/fs/cgroup")

# Debian keeps servers out of an ordinary PATH, and PostgreSQL's out of any.
_MORE_PATH = ["/usr/sbin", "/sbin", "/usr/local/sbin"]
_MORE_PATH += [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

Probe = Callable[..., "str | None"]
_PROBES: dict[str, Probe] = {}


def missing(name: str, *details: str) -> str | None:
    """Why the need `name` isn't met here, as "name: reason"; None when it is."""
    reason = _PROBES[name](*details)
    return None if reason is None else f"{' '.join([name, *details])}: {reason}"


def find_tool(name: str) -> str | None:
    """Absolute path of a program, servers' own directories included."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_MORE_PATH]))


def find_criu() -> str | None:
    """CRIU as ckpt looks for it: $CKPT_CRIU, the private copy, PATH."""
    if named := os.environ.get("CKPT_CRIU"):
        return named
    private = Path(os.environ.get("CKPT_CRIU_PREFIX", "/usr/local/lib/ckpt/criu")) / "criu"
    return str(private) if private.exists() else find_tool("criu")


def _probe(function: Probe) -> Probe:
    cached = functools.cache(function)
    _PROBES[function.__name__.removeprefix("_")] = cached
    return cached


def _need(name: str, *details: str) -> pytest.MarkDecorator:
    return pytest.mark.needs(name, *details)


def _output(*argv: str) -> tuple[int, str]:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout.strip()


def _in_child(action: Callable[[], None]) -> str | None:
    """Run `action` in a forked child, so that namespaces and mounts go with it."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads. The child takes no lock of Python's: system calls, one exec.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            action()
        except BaseException as error:
            os.write(writer, str(error).encode()[:1000] or b"failed")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said or None


def _libc(call: str, *arguments: int | bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _unshare(flags: int) -> None:
    _libc("unshare", flags)


# --- who we are -----------------------------------------------------------------------------------


@_probe
def _root() -> str | None:
    return None if os.geteuid() == 0 else "not running as root"


@_probe
def _not_root() -> str | None:
    return "running as root" if os.geteuid() == 0 else None


# --- programs -------------------------------------------------------------------------------------


@_probe
def _tool(*names: str) -> str | None:
    absent = [name for name in names if find_tool(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@_probe
def _criu() -> str | None:
    program = find_criu()
    if program is None:
        return "no CRIU: run scripts/setup-criu"
    status, said = _output(program, "check")
    return None if status == 0 else f"{program} check: {said.splitlines()[-1:]}"


@_probe
def _pycriu() -> str | None:
    try:
        from pycriu import images  # noqa: F401
    except ImportError as error:
        return f"{error}: run scripts/setup-criu --link-pycriu .venv"
    return None


@_probe
def _sshd() -> str | None:
    return _tool("sshd", "ssh", "ssh-keygen")


@_probe
def _compiler() -> str | None:
    """A C compiler that links a static program, as the container's init is one."""
    compiler = find_tool("cc") or find_tool("gcc")
    if compiler is None:
        return "no C compiler"
    with tempfile.TemporaryDirectory(prefix="ckpt-probe-") as folder:
        source = Path(folder, "probe.c")
        source.write_text("int main(void) { return 0; }\n")
        status, said = _output(compiler, "-static", "-o", f"{folder}/probe", str(source))
    return None if status == 0 else f"cannot link a static program: {said[:200]}"


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def browser_argv(profile: str, *words: str) -> list[str]:
    """A headless browser that keeps what it keeps in PROFILE, and is cut off from every network."""
    found = next((path for name in BROWSERS if (path := find_tool(name))), BROWSERS[0])
    return [
        "unshare", "--net", "--", found, "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}", *words,
    ]  # fmt: skip


@_probe
def _browser() -> str | None:
    """One that shows a page of nothing."""
    if reason := _root():  # for a network namespace of its own
        return reason
    if not any(map(find_tool, BROWSERS)):
        return f"none of {', '.join(BROWSERS)} is installed"
    with tempfile.TemporaryDirectory(prefix="ckpt-probe-") as folder:
        status, said = _output(*browser_argv(folder, "--dump-dom", "about:blank"))
    return None if status == 0 else f"it does not work: {said[-200:]}"


# --- cgroups --------------------------------------------------------------------------------------


def _file_system(path: Path) -> str | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[1] == str(path):
            return fields[2]
    return None


@_probe
def _cgroup_v2() -> str | None:
    """Pure cgroup v2, as stock Debian has it."""
    found = _file_system(CGROUP)
    return None if found == "cgroup2" else f"{CGROUP} is {found}, not pure cgroup v2"


@_probe
def _cgroup_v1() -> str | None:
    """Cgroup v1 controllers, alone or with a v2 tree beside them."""
    if _file_system(CGROUP) == "cgroup2":
        return f"{CGROUP} is pure cgroup v2"
    return None if _file_system(CGROUP / "memory") == "cgroup" else "no v1 memory controller"


@_probe
def _cgroup_write() -> str | None:
    """A child cgroup of our own can be made and removed."""
    base = CGROUP if _file_system(CGROUP) == "cgroup2" else CGROUP / "memory"
    folder = base / f"ckpt-probe-{os.getpid()}"
    try:
        folder.mkdir()
        folder.rmdir()
    except OSError as error:
        return str(error)
    return None


# --- namespaces and mounts ------------------------------------------------------------------------


@_probe
def _userns() -> str | None:
    return _in_child(lambda: _unshare(CLONE_NEWUSER))


@_probe
def _netns() -> str | None:
    return _root() or _in_child(lambda: _unshare(CLONE_NEWNET))


@_probe
def _pidns() -> str | None:
    return _root() or _in_child(lambda: _unshare(CLONE_NEWPID))


@_probe
def _mountns() -> str | None:
    return _root() or _in_child(lambda: _unshare(CLONE_NEWNS))


@_probe
def _overlayfs() -> str | None:
    if reason := _root():
        return reason
    with tempfile.TemporaryDirectory(prefix="ckpt-probe-") as folder:

        def mount() -> None:
            _unshare(CLONE_NEWNS)
            ms_rec, ms_private = 0x4000, 0x40000
            _libc("mount", b"none", b"/", None, ms_rec | ms_private, None)
            for name in ("lower", "upper", "work", "merged"):
                Path(folder, name).mkdir()
            options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
            target = f"{folder}/merged".encode()
            _libc("mount", b"overlay", target, b"overlay", 0, options.encode())
            _libc("umount2", target, 0)

        return _in_child(mount)


PROJECT_EXT4 = ("-q", "-F", "-t", "ext4", "-O", "quota,project", "-E", "quotatype=prjquota")
"""mke2fs's words for a file system with project quotas."""


@_probe
def _project_quotas() -> str | None:
    """Such a file system in a file, mounted."""
    if reason := _root() or _tool("mke2fs", "mount"):
        return reason
    with tempfile.TemporaryDirectory(prefix="ckpt-probe-") as folder:
        image = Path(folder, "image")
        with image.open("wb") as file:
            file.truncate(16 << 20)
        status, said = _output(find_tool("mke2fs") or "", *PROJECT_EXT4, str(image))
        if status:
            return said

        def mount() -> None:
            _unshare(CLONE_NEWNS)
            ms_rec, ms_private = 0x4000, 0x40000
            _libc("mount", b"none", b"/", None, ms_rec | ms_private, None)
            status, said = _output("mount", "-o", "loop,prjquota", str(image), folder)
            if status:
                raise OSError(said.splitlines()[0])

        return _in_child(mount)


def _link_kind(*words: str) -> str | None:
    """Make a link of a kind inside a network namespace that goes away with the child."""
    ip = find_tool("ip")
    if ip is None:
        return "not installed: ip"

    def add() -> None:
        _unshare(CLONE_NEWNET)
        status, said = _output(ip, "link", "add", "ckptprobe0", "type", *words)
        if status != 0:
            raise OSError(said)

    return _root() or _in_child(add)


@_probe
def _bridge() -> str | None:
    return _link_kind("bridge")


@_probe
def _veth() -> str | None:
    return _link_kind("veth", "peer", "name", "ckptprobe1")


@_probe
def _nftables() -> str | None:
    nft = find_tool("nft")
    if nft is None:
        return "not installed: nft"

    def add() -> None:
        _unshare(CLONE_NEWNET)
        status, said = _output(nft, "add", "table", "inet", "ckpt-probe")
        if status != 0:
            raise OSError(said)

    return _root() or _in_child(add)


@_probe
def _ipv6() -> str | None:
    return None if Path("/proc/net/if_inet6").exists() else "the kernel has no IPv6"


# --- memory tracking and other kernel features ----------------------------------------------------


@_probe
def _soft_dirty() -> str | None:
    """The kernel marks written pages (bit 55 of a pagemap entry), as CRIU's pre-dump needs."""
    page = os.sysconf("SC_PAGE_SIZE")
    memory = ctypes.create_string_buffer(2 * page)
    address = (ctypes.addressof(memory) + page - 1) // page * page
    ctypes.memset(address, 1, 1)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // page * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
    return None if entry >> 55 & 1 else "the kernel has no soft-dirty bit"


@_probe
def _kernel(oldest: str) -> str | None:
    """At least this kernel, for example "6.7"."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("-")[0].split(".")[:2])

    have = os.uname().release
    return None if numbers(have) >= numbers(oldest) else f"this is kernel {have}"


@_probe
def _capability(name: str) -> str | None:
    """A capability in the effective set, for example "CAP_SYS_RESOURCE"."""
    bits = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25}
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> bits[name] & 1:
            return None
    return "not in the effective set"


@_probe
def _device(path: str) -> str | None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return str(error)
    return None


# --- the markers ----------------------------------------------------------------------------------

root = _need("root")
not_root = _need("not_root")
criu = _need("criu")
pycriu = _need("pycriu")
sshd = _need("sshd")
compiler = _need("compiler")
browser = _need("browser")
cgroup_v1 = _need("cgroup_v1")
cgroup_v2 = _need("cgroup_v2")
cgroup_write = _need("cgroup_write")
userns = _need("userns")
netns = _need("netns")
pidns = _need("pidns")
mountns = _need("mountns")
overlayfs = _need("overlayfs")
bridge = _need("bridge")
veth = _need("veth")
nftables = _need("nftables")
ipv6 = _need("ipv6")
soft_dirty = _need("soft_dirty")
project_quotas = _need("project_quotas")


def tool(*names: str) -> pytest.MarkDecorator:
    """Programs that must be installed: needs.tool("redis-server")."""
    return _need("tool", *names)


def kernel(oldest: str) -> pytest.MarkDecorator:
    """A kernel at least this new: needs.kernel("6.7")."""
    return _need("kernel", oldest)


def capability(name: str) -> pytest.MarkDecorator:
    """needs.capability("CAP_SYS_RESOURCE")"""
    return _need("capability", name)


def device(path: str) -> pytest.MarkDecorator:
    """A device that can be opened for reading and writing: needs.device("/dev/net/tun")."""
    return _need("device", path)


# What many modules need; the conditions of a list are checked in its order.
CONTAINERS = [root, overlayfs, tool("busybox"), compiler]
CHECKPOINTS = [root, criu, compiler, cgroup_write, overlayfs]
MIGRATION = [root, criu, sshd, netns, bridge, veth, tool("cc")]
SURVIVAL = [*CHECKPOINTS, pycriu, sshd, tool("busybox")]
