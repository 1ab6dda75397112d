"""One guest: start it, run programs in it, copy files, stop it, cut its power.

Its disk is a copy-on-write file over an image and goes with the guest, unless somebody keeps it.
QEMU runs as a daemon known by its pid file: a guest outlives the function that started it, and cutting
its power is nothing but killing that process, after which the disk holds what the guest had written
to it and not what was only in its memory.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.vm import qmp
from tests.vm.image import Image, keys
from tests.vm.segment import Segment
from tests.vm.settings import CPU, GUESTS, KERNEL_ARGUMENTS, MEMORY_MB, SUBNET

PATIENCE = 600
"""Seconds for a guest to come or go: 15 to 35 on two idle cores, many times that beside other work."""
_BAD_SIGNS = ("Kernel panic", "Oops:", "BUG: ", "general protection fault")


class GuestError(Exception):
    """A guest didn't do what it was told; the end of its console is part of the text."""


class Guest:
    """Guest NAME ("a" or "b") on SEGMENT; its files are in DIRECTORY. BASE: a disk to start from, else IMAGE's own."""

    def __init__(
        self,
        name: str,
        image: Image,
        segment: Segment,
        directory: Path,
        *,
        base: Path | None = None,
        init: str = "tiny",
        cpu: str = CPU,
        memory: int = MEMORY_MB,
        cargo: Path | None = None,
    ) -> None:
        if init not in ("tiny", "systemd"):
            raise ValueError(f"init {init!r} is neither tiny nor systemd")
        self.name = name
        self.image = image
        self.segment = segment
        self.directory = directory
        self.base = base
        self.init = init
        self.cpu = cpu
        self.memory = memory
        self.cargo = cargo
        self.address = f"{SUBNET}.{GUESTS[name]}"

    def __repr__(self) -> str:
        return f"<guest {self.name}: {self.image.info['suite']}, {self.init}>"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    # --- power ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch it on; a new disk if there is none. Doesn't wait. Raises GuestError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.disk.exists():
            base, kind = (self.base, "qcow2") if self.base else (self.image.disk, "raw")
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", kind]
            subprocess.run([*create, str(self.disk)], check=True)
        with contextlib.suppress(FileNotFoundError):
            self.console.replace(self.directory / "console-before.log")
        self.segment.up()
        argv = self.segment.argv(*self._qemu(self.segment.tap(self.name)))
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise GuestError(f"QEMU for guest {self.name}: {done.stdout.strip()}")

    def _qemu(self, tap: str) -> list[str]:
        append = f"{KERNEL_ARGUMENTS} lab.name={self.name} lab.address={self.address}/24"
        if self.init == "tiny":
            append += " init=/sbin/lab-init"
        mac = f"52:54:00:86:00:{GUESTS[self.name]:02x}"
        d = self.directory
        disk = "format=qcow2,cache=unsafe,discard=unmap"
        words = [
            *("qemu-system-x86_64", "-name", f"ckpt-lab-{self.name}"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256"),
            *("-cpu", self.cpu, "-smp", "1", "-m", str(self.memory)),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", append),
            *("-drive", f"file={self.disk},if=none,id=root,{disk}"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="),
            *("-device", "virtio-rng-pci"),
            *("-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{d}/qmp,server=on,wait=off"),
            *("-pidfile", f"{d}/pid", "-daemonize"),
        ]
        if self.cargo is not None:
            words += ["-drive", f"file={self.cargo},if=none,id=cargo,format=raw,read-only=on"]
            words += ["-device", "virtio-blk-pci,drive=cargo"]
        return words

    def pid(self) -> int | None:
        """QEMU's process; None if it isn't running."""
        try:
            pid = int((self.directory / "pid").read_text())
            command = Path("/proc", str(pid), "cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # The pid may have been given to somebody else since.
        return pid if os.fsencode(self.directory) in command else None

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until it answers over SSH. Raises GuestError."""
        deadline = time.monotonic() + seconds
        while True:
            # Logging in alone may take most of a minute on a busy machine: ended too early, it begins anew for ever.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.run("true", check=False, timeout=120).returncode == 0:
                    return
            if self.pid() is None:
                raise GuestError(f"guest {self.name} went off:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise GuestError(f"guest {self.name} doesn't answer:\n{self.tail()}")
            time.sleep(0.3)

    def shut_down(self) -> None:
        """Everything on disk, then off."""
        self.run("sync")
        with contextlib.suppress(OSError, qmp.QmpError):
            qmp.command(self.directory / "qmp", "quit")
        self._off()

    def cut_power(self) -> None:
        """Off, at once: what was only in its memory is lost. `start` switches it on again."""
        if pid := self.pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._off()

    def wait_off(self, seconds: float = PATIENCE) -> None:
        """Until it has switched itself off: QEMU ends when a guest restarts, too. Raises GuestError."""
        self._off(seconds)

    def _off(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while self.pid() is not None:
            if time.monotonic() > deadline:
                raise GuestError(f"QEMU of guest {self.name} doesn't end")
            time.sleep(0.05)
        self._forget_connection()

    def _forget_connection(self) -> None:
        """Let SSH's shared connection go: it would wait for a guest that is off."""
        control = [*self._ssh(), "-O", "exit", self.name]
        subprocess.run(control, stdin=subprocess.DEVNULL, capture_output=True)
        (self.directory / "ssh").unlink(missing_ok=True)

    # --- in use -----------------------------------------------------------------------------------

    def _ssh(self) -> list[str]:
        login = keys()
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "HostName": self.address,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": login / "client",
            "UserKnownHostsFile": login / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "LogLevel": "ERROR",
            "User": "root",
            # A handshake takes most of a second under emulation: one connection for all.
            "ControlMaster": "auto",
            "ControlPersist": "600",
            "ControlPath": self.directory / "ssh",
            "ServerAliveInterval": "30",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return self.segment.argv("ssh", "-F", "none", *words)

    def argv(self, *command: str) -> list[str]:
        """The command line that runs COMMAND (a shell's line, if it's one word) in the guest."""
        line = command[0] if len(command) == 1 else shlex.join(command)
        return [*self._ssh(), self.name, "--", line]

    def run(
        self, *command: str, check: bool = True, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run COMMAND to its end; output is captured as text. Raises CalledProcessError, TimeoutExpired."""
        options = {"capture_output": True, "text": True, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(self.argv(*command), timeout=timeout, **options)
        if check and done.returncode:
            error = subprocess.CalledProcessError(
                done.returncode, list(command), done.stdout, done.stderr
            )
            error.add_note(f"in guest {self.name}: {done.stdout}{done.stderr}"[-6000:])
            raise error
        return done

    def text(self, *command: str, **options: Any) -> str:
        """What COMMAND, which must succeed, prints."""
        return str(self.run(*command, **options).stdout).strip()

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start COMMAND. Whoever calls ends it."""
        return subprocess.Popen(self.argv(*command), **{"text": True, **options})

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        raw = content.encode() if isinstance(content, str) else content
        line = f"mkdir -p $(dirname {shlex.quote(path)}) && cat >{shlex.quote(path)}"
        self.run(f"{line} && chmod {mode:o} {shlex.quote(path)}", input=raw, text=False)

    def collect(self, paths: Sequence[str], target: Path) -> None:
        """Copy what there is of PATHS into directory TARGET."""
        target.mkdir(parents=True, exist_ok=True)
        quoted = " ".join(shlex.quote(path.lstrip("/")) for path in paths)
        line = f"cd / && tar -czf - --ignore-failed-read --warning=none {quoted} 2>/dev/null"
        packed = self.run(line, text=False, check=False).stdout
        unpack = ["tar", "-xzf", "-", "-C", str(target), "--no-same-owner"]
        subprocess.run(unpack, input=packed, check=False, capture_output=True)

    # --- looking at it ----------------------------------------------------------------------------

    def tail(self, lines: int = 25) -> str:
        """The end of its console."""
        try:
            text = self.console.read_text(errors="replace")
        except FileNotFoundError:
            return "(no console)"
        return "\n".join(text.splitlines()[-lines:])

    def complaints(self) -> list[str]:
        """Lines of the kernel on its console which no healthy one writes."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return [line for line in text.splitlines() if any(sign in line for sign in _BAD_SIGNS)]
