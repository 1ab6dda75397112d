"""A cgroup2 file system made of ordinary files, for tests of what this host's kernel doesn't have.

It does what the kernel documents for the files that ckpt uses: a new cgroup has the files of the
controllers that its parent passes on, values are normalised as the kernel prints them, wrong
ones are refused with the kernel's errno, a parent with processes passes nothing on, what is in use
can't be removed. It doesn't limit anything, and its processes are just numbers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from runtime.cgroups.devices import DevicePolicy
from runtime.cgroups.files import CgroupFs
from runtime.cgroups.parse import format_cpuset, parse_cpuset

ALL = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
_CORE = {
    "cgroup.procs": "",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.max.depth": "max\n",
    "cgroup.max.descendants": "max\n",
    "cpu.stat": "usage_usec 7000\nuser_usec 5000\nsystem_usec 2000\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.20 avg300=0.00 total=4200\n",
}
_OF_CONTROLLER = {
    "cpu": {
        "cpu.weight": "100\n",
        "cpu.idle": "0\n",
        "cpu.max": "max 100000\n",
        "cpu.max.burst": "0\n",
    },
    "cpuset": {"cpuset.cpus": "\n", "cpuset.mems": "\n"},
    "memory": {
        "memory.current": "4096\n",
        "memory.max": "max\n",
        "memory.high": "max\n",
        "memory.low": "0\n",
        "memory.peak": "8192\n",
        "memory.swap.max": "max\n",
        "memory.swap.current": "0\n",
        "memory.stat": "anon 4096\nfile 0\ninactive_file 0\n",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
        "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    },
    "pids": {"pids.max": "max\n", "pids.current": "0\n", "pids.peak": "0\n"},
    "io": {"io.max": "", "io.weight": "default 100\n", "io.stat": ""},
    "hugetlb": {"hugetlb.2MB.max": "max\n", "hugetlb.1GB.max": "max\n"},
}


class FakeV2(CgroupFs):
    """Stands in for the kernel below `root`, a directory that is there; use as Layout.fs."""

    def __init__(self, root: str, controllers: tuple[str, ...] = ALL, cpus: str = "0-3") -> None:
        self.root = os.path.abspath(root)
        self.device_policies: dict[str, DevicePolicy] = {}
        self._marked: set[str] = set()
        self._cpus = parse_cpuset(cpus)
        self._put(self.root, "cgroup.controllers", " ".join(controllers) + "\n")
        self._put(self.root, "cgroup.subtree_control", "\n")
        self._put(self.root, "cgroup.procs", "1\n2\n")
        self._put(self.root, "cpuset.cpus.effective", cpus + "\n")
        self._put(self.root, "cpuset.mems.effective", "0\n")

    # ---------------------------------------------------------------- directories

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        passed = self._text(os.path.dirname(path), "cgroup.subtree_control")
        for name, text in _CORE.items():
            self._put(path, name, text)
        self._put(path, "cgroup.controllers", passed)
        self._put(path, "cgroup.subtree_control", "\n")
        for controller in passed.split():
            self._add_files(path, controller)

    def rmdir(self, path: str) -> None:
        if self.subdirs(path) or self._text(path, "cgroup.procs").split():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        super().rmdir(path)
        self._marked.discard(path)
        self.device_policies.pop(path, None)

    def mark(self, path: str) -> None:
        self._marked.add(path)

    def marked(self, path: str) -> bool:
        os.stat(path)
        return path in self._marked

    def attach_devices(self, path: str, policy: DevicePolicy) -> None:
        self.device_policies[path] = policy

    # ---------------------------------------------------------------- files

    def write(self, path: str, text: str) -> None:
        directory, name = os.path.split(path)
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        special: dict[str, Callable[[str, str], None]] = {
            "cgroup.procs": self._enter,
            "cgroup.freeze": self._freeze,
            "cgroup.kill": lambda where, _: self._put(where, "cgroup.procs", ""),
            "cgroup.subtree_control": self._pass_on,
            "io.max": self._io_max,
            "io.weight": self._io_weight,
            "cpu.max": self._cpu_max,
            "cpu.max.burst": self._burst,
            "cpu.idle": self._idle,
        }
        if name in special:
            special[name](directory, text)
        else:
            self._put(directory, name, self._normal(directory, name, text) + "\n")

    def _normal(self, directory: str, name: str, text: str) -> str:
        text = text.strip()
        if name in ("cpuset.cpus", "cpuset.mems"):
            if not text:
                return text
            numbers = parse_cpuset(text)
            self._refuse(name == "cpuset.cpus" and not numbers <= self._cpus, errno.EINVAL)
            return format_cpuset(numbers)
        if name == "cpu.weight":
            self._refuse(not 1 <= int(text) <= 10000, errno.ERANGE)
            self._refuse(self._text(directory, "cpu.idle").strip() == "1", errno.EINVAL)
        elif text != "max":
            self._refuse(not text.isdigit(), errno.EINVAL)
            if name.startswith("memory."):
                return str(int(text) // 4096 * 4096)
        return text

    def _enter(self, directory: str, text: str) -> None:
        busy = self._text(directory, "cgroup.subtree_control").split()
        self._refuse(bool(busy) and directory != self.root, errno.EBUSY)
        for folder, _, files in os.walk(self.root):
            if "cgroup.procs" in files:
                left = [p for p in self._text(folder, "cgroup.procs").split() if p != text]
                self._put(folder, "cgroup.procs", "".join(f"{p}\n" for p in left))
        now = self._text(directory, "cgroup.procs") + f"{int(text)}\n"
        self._put(directory, "cgroup.procs", now)

    def _freeze(self, directory: str, text: str) -> None:
        state = str(int(text))
        self._put(directory, "cgroup.freeze", f"{state}\n")
        self._put(directory, "cgroup.events", f"populated 1\nfrozen {state}\n")

    def _pass_on(self, directory: str, text: str) -> None:
        sign, controller = text[0], text[1:].strip()
        available = self._text(directory, "cgroup.controllers").split()
        passed = self._text(directory, "cgroup.subtree_control").split()
        self._refuse(controller not in available, errno.ENOENT)
        has_processes = bool(self._text(directory, "cgroup.procs").split())
        self._refuse(has_processes and directory != self.root, errno.EBUSY)
        self._refuse(sign != "+", errno.EINVAL)
        if controller in passed:
            return
        self._put(directory, "cgroup.subtree_control", " ".join([*passed, controller]) + "\n")
        for child in self.subdirs(directory):
            above = self._text(child, "cgroup.controllers").split()
            self._put(child, "cgroup.controllers", " ".join([*above, controller]) + "\n")
            self._add_files(child, controller)

    def _io_max(self, directory: str, text: str) -> None:
        device, *pairs = text.split()
        lines = {line.split()[0]: line for line in self._text(directory, "io.max").splitlines()}
        values = dict.fromkeys(("rbps", "wbps", "riops", "wiops"), "max")
        values |= dict(pair.split("=") for pair in lines.get(device, "").split()[1:])
        for pair in pairs:
            key, value = pair.split("=")
            self._refuse(value == "0" or key not in values, errno.EINVAL)
            values[key] = value
        lines[device] = " ".join([device, *(f"{key}={value}" for key, value in values.items())])
        if set(values.values()) == {"max"}:
            del lines[device]
        self._put(directory, "io.max", "".join(f"{line}\n" for line in lines.values()))

    def _io_weight(self, directory: str, text: str) -> None:
        lines = dict(line.split() for line in self._text(directory, "io.weight").splitlines())
        key, value = text.split() if " " in text else ("default", text)
        if value == "default":
            lines.pop(key, None)
        else:
            self._refuse(not 1 <= int(value) <= 10000, errno.ERANGE)
            lines[key] = value
        self._put(directory, "io.weight", "".join(f"{k} {v}\n" for k, v in lines.items()))

    def _cpu_max(self, directory: str, text: str) -> None:
        old_quota, old_period = self._text(directory, "cpu.max").split()
        quota, period = [*text.split(), old_period][:2]
        burst = int(self._text(directory, "cpu.max.burst"))
        self._refuse(quota != "max" and int(quota) < max(1000, burst), errno.EINVAL)
        self._refuse(not 1000 <= int(period) <= 1_000_000, errno.EINVAL)
        self._put(directory, "cpu.max", f"{quota or old_quota} {period}\n")

    def _burst(self, directory: str, text: str) -> None:
        quota = self._text(directory, "cpu.max").split()[0]
        self._refuse(quota != "max" and int(text) > int(quota), errno.EINVAL)
        self._put(directory, "cpu.max.burst", f"{int(text)}\n")

    def _idle(self, directory: str, text: str) -> None:
        self._put(directory, "cpu.idle", f"{int(text)}\n")
        self._put(directory, "cpu.weight", "0\n" if int(text) else "100\n")

    # ---------------------------------------------------------------- plumbing

    def _add_files(self, directory: str, controller: str) -> None:
        for name, text in _OF_CONTROLLER.get(controller, {}).items():
            self._put(directory, name, text)

    def _put(self, directory: str, name: str, text: str) -> None:
        with open(os.path.join(directory, name), "w", encoding="ascii") as file:
            file.write(text)

    def _text(self, directory: str, name: str) -> str:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            return file.read()

    def _refuse(self, wrong: bool, number: int) -> None:
        if wrong:
            raise OSError(number, os.strerror(number))
