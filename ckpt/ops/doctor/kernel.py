"""The kernel: which one, namespaces, capabilities, seccomp, ptrace, memory tracking."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ckpt.ops.doctor.row import Level, Probe, Row, in_child, reason
from runtime import syscalls
from runtime.container import idrange
from runtime.stage.namespaces import user_namespace
from runtime.tracking import pagemap, uffd

TESTED = ("x86_64", "aarch64")

# What the lack of a capability means. "bad": nothing works; the others cost something.
_CAPABILITIES: tuple[tuple[str, int, Level, str], ...] = (
    ("CAP_CHOWN", 0, "bad", "files of containers can't get their owners"),
    ("CAP_DAC_OVERRIDE", 1, "bad", "files of containers can't be read and written"),
    ("CAP_FOWNER", 3, "bad", "modes and times of containers' files can't be set"),
    ("CAP_FSETID", 4, "warn", "set-user-id bits of files are lost when they move"),
    ("CAP_KILL", 5, "bad", "containers can't be stopped"),
    ("CAP_SETGID", 6, "bad", "processes can't get their groups"),
    ("CAP_SETUID", 7, "bad", "processes can't get their users"),
    ("CAP_SETPCAP", 8, "bad", "containers' capabilities can't be bounded"),
    ("CAP_NET_ADMIN", 12, "bad", "containers get no network, connections can't be dumped"),
    ("CAP_NET_RAW", 13, "warn", "neighbours aren't told where a migrated address went"),
    ("CAP_SYS_CHROOT", 18, "bad", "containers get no root directory of their own"),
    ("CAP_SYS_PTRACE", 19, "bad", "processes can't be dumped"),
    ("CAP_SYS_ADMIN", 21, "bad", "no namespaces, no mounts, no containers"),
    (
        "CAP_SYS_RESOURCE",
        24,
        "warn",
        "limits (ulimit) can't be raised; processes that aren't root are dumpable only in a user namespace;"
        " pipes don't grow beyond fs.pipe-max-size",
    ),
    ("CAP_MKNOD", 27, "warn", "device nodes of containers and in layers can't be made"),
    ("CAP_SETFCAP", 31, "bad", "user namespaces with root in them can't be made"),
)
_GRANT = (
    "grant it to whatever runs this host (the engine's --cap-add, systemd's CapabilityBoundingSet=)"
)

_NAMESPACES: tuple[tuple[str, int, str], ...] = (
    ("mnt", syscalls.CLONE_NEWNS, ""),
    ("pid", syscalls.CLONE_NEWPID, "user.max_pid_namespaces"),
    ("net", syscalls.CLONE_NEWNET, "user.max_net_namespaces"),
    ("uts", syscalls.CLONE_NEWUTS, "user.max_uts_namespaces"),
    ("ipc", syscalls.CLONE_NEWIPC, "user.max_ipc_namespaces"),
    ("cgroup", syscalls.CLONE_NEWCGROUP, "user.max_cgroup_namespaces"),
    ("time", syscalls.CLONE_NEWTIME, "user.max_time_namespaces"),
)
BIG_PIPE = 16 << 20
"""Bytes that were enough for CRIU's page pipes where CAP_SYS_RESOURCE is missing."""


def probes() -> dict[str, Probe]:
    return {
        "kernel": kernel,
        "root": root,
        "capabilities": capabilities,
        "namespaces": namespaces,
        "user namespace": user_namespaces,
        "seccomp": seccomp,
        "ptrace": ptrace,
        "pipe size": pipe_size,
        "userfaultfd": userfaultfd,
        "UFFD WP_ASYNC": wp_async,
        "PAGEMAP_SCAN": scan,
        "soft-dirty": soft_dirty,
    }


def sysctl(name: str) -> str | None:
    """Its value, None where this kernel hasn't got it."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def kernel() -> Row:
    machine = platform.machine()
    value = f"{platform.release()} {machine}"
    numbers = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if machine not in TESTED:
        return Row(
            "kernel",
            value,
            "warn",
            "nobody has tried ckpt on this processor",
            "use x86-64 or arm64",
        )
    if numbers < (5, 12):
        return Row("kernel", value, "bad", "there are no idmapped mounts before 5.12", "upgrade it")
    if numbers < (5, 19):
        # overlayfs learnt to use idmapped layers in 5.19.
        fix = "upgrade it, or run with --userns host"
        return Row("kernel", value, "warn", "no idmapped layers under overlayfs before 5.19", fix)
    return Row("kernel", value)


def root() -> Row:
    if os.geteuid() == 0:
        return Row("root", "yes")
    return Row("root", f"no: uid {os.geteuid()}", "bad", "ckpt needs root", "sudo ckpt ...")


def capabilities() -> Row:
    effective = _capability_mask()
    missing = [(n, level, why) for n, bit, level, why in _CAPABILITIES if not effective >> bit & 1]
    if not missing:
        return Row("capabilities", "all that are needed")
    level: Level = "bad" if any(level == "bad" for _, level, _ in missing) else "warn"
    value = "without " + ", ".join(name for name, _, _ in missing)
    return Row("capabilities", value, level, "; ".join(why for _, _, why in missing), _GRANT)


def _capability_mask() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise ValueError("/proc/self/status has no CapEff")


def namespaces() -> Row:
    """Each is made for real, in a child that ends at once."""
    there, missing, cures = [], [], []
    for name, flag, limit in _NAMESPACES:
        why = in_child(lambda flag=flag: syscalls.unshare(flag))  # type: ignore[misc]
        if not why:
            there.append(name)
            continue
        missing.append(f"{name} ({why})")
        if limit and sysctl(limit) == "0":
            cures.append(f"sysctl -w {limit}=10000")
    if not missing:
        return Row("namespaces", " ".join(there))
    # CRIU keeps clocks going with a time namespace; all others are part of every container.
    level: Level = "warn" if all(text.startswith("time ") for text in missing) else "bad"
    consequence = (
        "clocks of restored processes jump" if level == "warn" else "containers can't be isolated"
    )
    fix = "; ".join(cures) or "run on a kernel, or in an environment, that allows them"
    return Row("namespaces", f"not {', '.join(missing)}", level, consequence, fix)


def user_namespaces() -> Row:
    try:
        os.close(user_namespace(idrange.FIRST, idrange.SIZE))
    except OSError as error:
        limit = "user.max_user_namespaces"
        fix = f"sysctl -w {limit}=10000" if sysctl(limit) == "0" else "see the kernel's log"
        consequence = "containers run only with --userns host, which isolates less"
        return Row("user namespace", f"no: {reason(error)}", "bad", consequence, fix)
    return Row("user namespace", f"made, with {idrange.SIZE} ids mapped")


def seccomp() -> Row:
    actions = (sysctl("kernel.seccomp.actions_avail") or "").split()
    if not actions:
        consequence = "containers run without a system-call filter"
        return Row(
            "seccomp", "no", "bad", consequence, "a kernel with CONFIG_SECCOMP_FILTER, or --seccomp"
        )
    return Row("seccomp", "filters")


def ptrace() -> Row:
    scope = sysctl("kernel.yama.ptrace_scope")
    if scope == "3":
        fix = "it can't be taken back before a reboot: remove it from /etc/sysctl.d"
        return Row("ptrace", "kernel.yama.ptrace_scope=3", "bad", "processes can't be dumped", fix)
    return Row("ptrace", "allowed" if scope is None else f"allowed (ptrace_scope={scope})")


def pipe_size() -> Row:
    size = int(sysctl("fs.pipe-max-size") or 0)
    unlimited = bool(_capability_mask() >> 24 & 1)
    if unlimited or size >= BIG_PIPE:
        return Row("pipe size", f"{size >> 10} KiB" + (", may be exceeded" if unlimited else ""))
    return Row(
        "pipe size",
        f"{size >> 10} KiB, may not be exceeded",
        "warn",
        "without CAP_SYS_RESOURCE CRIU can't enlarge its page pipes: lazy dumps of large processes fail",
        f"sysctl -w fs.pipe-max-size={BIG_PIPE}",
        "pipe-size",
    )


def userfaultfd() -> Row:
    value = sysctl("vm.unprivileged_userfaultfd")
    if value is None:
        return Row(
            "userfaultfd",
            "no",
            "warn",
            "no lazy restore: a restore waits until all memory is in place",
            "a kernel with CONFIG_USERFAULTFD",
        )
    name = "vm.unprivileged_userfaultfd"
    if value == "1":
        return Row("userfaultfd", f"{name}=1")
    if os.access("/proc/sys/vm/unprivileged_userfaultfd", os.W_OK):
        return Row("userfaultfd", f"{name}={value}, set to 1 while a lazy restore runs")
    return Row(
        "userfaultfd",
        f"{name}={value}, and it can't be set",
        "warn",
        "no lazy restore into a user namespace: a restore waits until all memory is in place",
        f"sysctl -w {name}=1, where this host's own host allows it",
    )


def wp_async() -> Row:
    if uffd.supports_async():
        return Row("UFFD WP_ASYNC", "yes")
    return Row(
        "UFFD WP_ASYNC",
        "no",
        "warn",
        "writes are tracked by slower ways: soft-dirty, else comparison",
        "Linux 6.7 or newer with CONFIG_PTE_MARKER_UFFD_WP",
    )


def scan() -> Row:
    if pagemap.supports_scan():
        return Row("PAGEMAP_SCAN", "yes")
    consequence = "CRIU and warm migration look at memory page by page"
    return Row("PAGEMAP_SCAN", "no", "warn", consequence, "Linux 6.7 or newer")


def soft_dirty() -> Row:
    if pagemap.supports_soft_dirty():
        return Row("soft-dirty", "yes")
    if uffd.supports_async() and pagemap.supports_scan():
        return Row("soft-dirty", "no (not needed: WP_ASYNC)")
    consequence = "written pages are found only by comparing all of memory"
    fix = "a kernel with CONFIG_MEM_SOFT_DIRTY, or Linux 6.7 or newer"
    return Row("soft-dirty", "no", "warn", consequence, fix)
