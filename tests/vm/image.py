"""A suite's image: a Debian as its mirror has it now, small changes for the lab, kernel and initial RAM disk.

What flows: debootstrap and apt fill a directory; files of `files/` are laid over it; all that tells of
the mirror is removed, and looked for; `mke2fs -d` turns the directory into a file system without a
loop device or a mount. An image is named by a digest of all package versions and of this code, so
it's made anew when the suite moved or the recipe did, and two runs can't meet in a half-made one: it
is built beside and renamed.

Needs root, debootstrap, mke2fs. About 700 MB on disk while it works, 900 MB kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm import kernel, mirror
from tests.vm.settings import CACHE, DISK, FILES, GUESTS, SUBNET, packages

log = logging.getLogger(__name__)

_RECIPE = [Path(__file__), Path(kernel.__file__), *sorted(FILES.iterdir())]
_DISK_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_SERVICES_OFF = ("redis-server", "nginx", "postgresql", "nftables")
# Timers that would start beside a test, and what waits for hardware that isn't there.
_MASKED = [
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "man-db.timer", "systemd-timesyncd.service"),
    *("systemd-networkd-wait-online.service", "systemd-pstore.service", "getty@tty1.service"),
]
_CHROOT_ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


class CannotBuild(Exception):
    """One line that says why there is no image."""


@dataclass(frozen=True, slots=True)
class Image:
    """Files of an image: the root file system, what QEMU boots, and what is in it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        elf = self.folder / "vmlinux"
        return elf if elf.exists() else self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.img"

    @property
    def info(self) -> dict[str, str]:
        """suite, kernel, python ("3.13"), criu, key."""
        return dict(json.loads((self.folder / "info.json").read_text()))


def image(suite: str) -> Image:
    """The image of SUITE, built if it's missing or no longer what the mirror has.

    Without a mirror the newest one of the suite will do. Raises CannotBuild.
    """
    names = packages(suite)
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        planned = mirror.versions(suite, names)
    except mirror.Unreachable as error:
        if made := _made(suite):
            log.warning("%s; taking the image that is there", error)
            return made[-1]
        raise CannotBuild(str(error)) from error
    key = _key(suite, names, planned)
    folder = CACHE / f"{suite}-{key}"
    with _alone(suite):
        if not (folder / "info.json").exists():
            _build(suite, key, names, folder)
        os.utime(folder)
        # One older stays: guests may still run on it.
        for old in _made(suite)[:-2]:
            shutil.rmtree(old.folder)
    return Image(folder)


def _made(suite: str) -> list[Image]:
    """Complete images of SUITE, the one used last at the end."""
    folders = [path.parent for path in CACHE.glob(f"{suite}-*/info.json")]
    return [Image(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime)]


def _key(suite: str, names: list[str], planned: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([suite, names, DISK, sorted(planned.items())]).encode())
    recipe = [*_RECIPE, mirror.SETUP_CRIU] if suite == "bookworm" else _RECIPE
    for path in recipe:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _alone(suite: str) -> Iterator[None]:
    with (CACHE / f".{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- building -------------------------------------------------------------------------------------


def _build(suite: str, key: str, names: list[str], folder: Path) -> None:
    if os.geteuid() != 0:
        raise CannotBuild("building an image needs root")
    for tool in ("debootstrap", "mke2fs", "ssh-keygen"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            raise CannotBuild(f"not installed: {tool}")
    began = time.monotonic()
    log.info("building Debian %s (%s)", suite, key)
    # Nothing is ever mounted in it as others see it, so that deleting it is safe.
    work = CACHE / f".build-{suite}"
    shutil.rmtree(work, ignore_errors=True)
    new = work / "image"
    new.mkdir(parents=True)
    builder = _Builder(suite, work / "root", work / "log")
    try:
        builder.bootstrap(names)
        builder.configure()
        release = builder.boot_files(new)
        builder.forget_mirror()
        info = {"suite": suite, "key": key, "kernel": release, **builder.contents()}
        builder.file_system(new / "root.img")
        (new / "info.json").write_text(json.dumps(info, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        if (folder / "info.json").exists():
            shutil.rmtree(work)
    log.info("built in %.0f s: %s", time.monotonic() - began, info)


class _Builder:
    """A directory becoming a root file system."""

    def __init__(self, suite: str, root: Path, log_file: Path) -> None:
        self.suite = suite
        self.root = root
        self.log = log_file

    def call(self, *argv: str | Path, shell_env: dict[str, str] | None = None) -> None:
        with self.log.open("ab") as output:
            done = subprocess.run(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=shell_env or os.environ,
            )
        if done.returncode:
            last = self.log.read_text(errors="replace").splitlines()[-15:]
            text = re.sub(r"https?://[^/ ]+", "<mirror>", "\n".join(last))
            raise CannotBuild(f"{Path(argv[0]).name} failed ({self.log}):\n{text}")

    def inside(self, *argv: str) -> None:
        """Run a program in the tree, with /proc: in a mount namespace, so that nobody else sees the mount."""
        script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(self.root), *argv]
        self.call(*command, shell_env={**self._proxies(), **_CHROOT_ENV})

    def as_root_of_all(self, *argv: str) -> None:
        """As `inside`, with devices and cgroups, and the tree as the root mount: CRIU's own check looks at those."""
        script = (
            'cd "$0" && mount --bind . . && cd "$0" && mount -t proc proc proc && mount --rbind /dev dev'
            " && mount -t sysfs sysfs sys && mount --rbind /sys/fs/cgroup sys/fs/cgroup"
            ' && pivot_root . mnt && umount -l mnt && exec chroot . "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", script, str(self.root), *argv]
        self.call(*command, shell_env={**self._proxies(), **_CHROOT_ENV})

    @staticmethod
    def _proxies() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    # --- packages -------------------------------------------------------------------------------

    def bootstrap(self, names: list[str]) -> None:
        """debootstrap for the base, apt for the rest: it knows about alternatives and conflicts."""
        arguments = ["--variant=minbase", "--components=main", self.suite, str(self.root)]
        self.call("debootstrap", *arguments, mirror.address(self.suite))
        quick = "force-unsafe-io\nforce-confold\n" + "".join(
            f"path-exclude=/usr/share/{name}/*\n" for name in ("doc", "man", "locale", "info")
        )
        self.write("/etc/dpkg/dpkg.cfg.d/lab", quick)
        self.write("/etc/apt/apt.conf.d/lab-transport", mirror.transport_options())
        self.write("/etc/apt/apt.conf.d/lab", 'APT::Install-Recommends "false";\n')
        name, text = mirror.source(self.suite)
        (self.root / "etc/apt/sources.list").unlink(missing_ok=True)
        self.write(f"/etc/apt/sources.list.d/{name}", text)
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        self.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        # The stock initial RAM disk would take long, and isn't used; nor is a cluster of PostgreSQL.
        self.write("/etc/kernel/postinst.d/initramfs-tools", "#!/bin/sh\nexit 0\n", 0o755)
        self.write("/etc/postgresql-common/createcluster.conf", "create_main_cluster = false\n")
        self.inside("apt-get", "-q", "update")
        self.inside("apt-get", "-qy", "install", *names)
        if self.suite == "bookworm":
            self._private_criu()
        (self.root / "usr/sbin/policy-rc.d").unlink()

    def _private_criu(self) -> None:
        """What `make install` does where the distribution's CRIU is too old; guests have no mirror."""
        self.write("/tmp/setup-criu", mirror.SETUP_CRIU.read_text(), 0o755)
        # It looks for a source that serves its own release: that of the machine may say "stable".
        self.as_root_of_all("python3", "/tmp/setup-criu")
        (self.root / "tmp/setup-criu").unlink()

    # --- the lab's own --------------------------------------------------------------------------

    def configure(self) -> None:
        login = keys()
        self.write("/etc/fstab", "/dev/vda / ext4 rw,noatime 0 0\n")
        self.write("/etc/hostname", "guest\n")
        hosts = {name: f"{SUBNET}.{last}" for name, last in GUESTS.items()}
        lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in hosts.items())]
        self.write("/etc/hosts", "\n".join([*lines, ""]))
        self.write("/root/.ssh/authorized_keys", (login / "client.pub").read_text(), 0o600)
        self.write("/root/.ssh/id_ed25519", (login / "client").read_text(), 0o600)
        self.write("/root/.ssh/known_hosts", (login / "known_hosts").read_text(), 0o600)
        (self.root / "root/.ssh").chmod(0o700)
        for old in (self.root / "etc/ssh").glob("ssh_host_*"):
            old.unlink()
        self.write("/etc/ssh/ssh_host_ed25519_key", (login / "host").read_text(), 0o600)
        quiet = "UseDNS no\nPrintMotd no\nMaxStartups 100\nMaxSessions 100\n"
        self.write("/etc/ssh/sshd_config.d/lab.conf", quiet)
        self.write("/sbin/lab-init", (FILES / "init").read_text(), 0o755)
        self.write("/etc/inittab", (FILES / "inittab").read_text())
        self.write("/usr/local/sbin/lab-network", (FILES / "lab-network").read_text(), 0o755)
        unit = (FILES / "lab-network.service").read_text()
        self.write("/etc/systemd/system/lab-network.service", unit)
        (self.root / "lab").mkdir()
        self.inside("passwd", "-q", "-d", "root")
        self.inside(
            "systemctl", "-q", "enable", "lab-network.service", "ssh.service", "cron.service"
        )
        self.inside("systemctl", "-q", "mask", *_MASKED)
        for service in _SERVICES_OFF:
            self.inside("systemctl", "-q", "disable", f"{service}.service")
        self.write("/etc/machine-id", "")

    def boot_files(self, out: Path) -> str:
        """Kernel and initial RAM disk; returns the kernel's release."""
        (path,) = (self.root / "boot").glob("vmlinuz-*")
        release = path.name.removeprefix("vmlinuz-")
        shutil.copy(path, out / "vmlinuz")
        if elf := kernel.unpacked(path):
            (out / "vmlinux").write_bytes(elf)
        self.inside("depmod", release)
        tree = self.root / "lab-initrd"
        for name in ("modules", "proc", "sys", "dev", "root"):
            (tree / name).mkdir(parents=True)
        shutil.copy(self.root / "usr/bin/busybox", tree / "busybox")
        shutil.copy(FILES / "initrd-init", tree / "init")
        (tree / "init").chmod(0o755)
        order = self._modules(release, tree / "modules")
        (tree / "modules/order").write_text("\n".join([*order, ""]))
        pack = "cd /lab-initrd && find . | busybox cpio -o -H newc -R 0:0 >/lab-initrd.img"
        self.inside("sh", "-c", pack)
        shutil.move(self.root / "lab-initrd.img", out / "initrd.img")
        shutil.rmtree(tree)
        return release

    def _modules(self, release: str, target: Path) -> list[str]:
        """Copy the modules that the root disk needs, unpacked; their names in order of loading."""
        order: list[str] = []
        for module in _DISK_MODULES:
            command = ["modprobe", "-S", release, "--show-depends", module]
            shown = subprocess.run(
                ["chroot", self.root, *command],
                env=_CHROOT_ENV, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            for path in re.findall(r"^insmod (\S+)", shown, re.M):
                source = self.root / path.lstrip("/")
                name = re.sub(r"\.(xz|zst|gz)$", "", source.name)
                if name not in order:
                    raw = source.read_bytes()
                    (target / name).write_bytes(kernel.expand(raw) or raw)
                    order.append(name)
        return order

    # --- the end --------------------------------------------------------------------------------

    def forget_mirror(self) -> None:
        """Remove what tells where the packages came from, and make sure that it's gone."""
        for name in ("var/lib/apt/lists", "var/cache/apt", "var/log", "etc/apt/sources.list.d"):
            shutil.rmtree(self.root / name)
            (self.root / name).mkdir()
        for name in ("etc/apt/apt.conf.d/lab-transport", "etc/resolv.conf"):
            (self.root / name).unlink()
        for file in (self.root / "boot").iterdir():
            if file.is_file():
                file.unlink()
        where = re.sub(r"^\w+://([^/:]+).*", r"\1", mirror.address(self.suite))
        search = ["grep", "-rlIF", "--", where, "etc", "var", "root", "usr/local"]
        found = subprocess.run(search, cwd=self.root, capture_output=True, text=True).stdout
        # Debian's own public name is in its packages, whoever serves them.
        if not where.endswith(".debian.org") and found:
            raise CannotBuild(f"the mirror's name is still in {' '.join(found.split())}")

    def contents(self) -> dict[str, str]:
        """Versions of what matters to ckpt."""
        shown = subprocess.run(
            ["chroot", self.root, "dpkg-query", "-W", "-f", "${Package} ${Version}\\n"],
            env=_CHROOT_ENV, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        have = dict(line.split() for line in shown.splitlines())
        criu = have.get("criu", "")
        origin = self.root / "usr/local/lib/ckpt/criu/ORIGIN"
        if origin.exists():
            criu = origin.read_text().split()[1]
        python = ".".join(have["python3"].split(".")[:2])
        return {"python": python, "criu": criu, "systemd": have["systemd"]}

    def file_system(self, place: Path) -> None:
        tuned = ["-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0", "-L", "guest"]
        # Features that the e2fsprogs of the oldest suite doesn't know would stop its fsck.
        tuned += ["-O", "^metadata_csum_seed,^orphan_file"]
        self.call("mke2fs", "-q", "-F", "-t", "ext4", *tuned, "-d", self.root, place, DISK)


# --- keys -----------------------------------------------------------------------------------------


def keys() -> Path:
    """A folder with the client's key, the one host key of all guests, and known_hosts; made once per cache."""
    folder = CACHE / "keys"
    if not folder.exists():
        new = CACHE / f".keys-{os.getpid()}"
        new.mkdir(mode=0o700, parents=True)
        for name in ("client", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"ckpt-lab-{name}"]
            subprocess.run([*command, "-f", new / name], check=True)
        kind, public = (new / "host.pub").read_text().split()[:2]
        names = [*GUESTS, *(f"{SUBNET}.{last}" for last in GUESTS.values())]
        (new / "known_hosts").write_text(f"{','.join(names)} {kind} {public}\n")
        new.rename(folder)
    return folder


def main(suites: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for suite in suites:
        try:
            print(image(suite).folder)
        except CannotBuild as error:
            print(f"{suite}: {error}", file=sys.stderr)
            return 1
    return 0
