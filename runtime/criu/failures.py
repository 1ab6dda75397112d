"""What CRIU's log means: the well-known failures as cause and remedy, and the lines that show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import RuntimeFault


class CriuFault(RuntimeFault):
    """A dump or restore that CRIU gave up. `lines`: its log around the first error; `log`: where the whole is."""

    lines: tuple[str, ...] = ()
    log: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """A pattern in CRIU's log, and what it means."""

    pattern: str
    why: str
    hint: str = ""
    retry: bool = False


# In order: the first that matches any error line wins, so special ones come first.
CAUSES = (
    Cause(
        r"io_uring|anon_inode:\[io_uring\]",
        "a process uses io_uring, which CRIU cannot dump",
        "switch it off in the program (for instance UV_USE_IO_URING=0), or block it with seccomp",
    ),
    Cause(
        r"Can't lookup mount=\d+ for fd=(-?\d+) path=(\S+)",
        "a process holds a file from outside the container: {0}, {1}",
        "start it without inherited descriptors; `ckpt exec` and `ckpt run` pass none on",
    ),
    Cause(
        r"[Dd]angling tty|tty: .*(?:not found|external)|Found slave peer|ctl tty .* leads outside",
        "a process has a terminal whose other end is outside the container",
        "start it with `ckpt run -t` or `ckpt exec -t`, whose terminals live inside",
    ),
    Cause(
        r"(?:unix|sk unix).*[Ee]xternal (?:stream |)socket|Can't dump half of stream unix connection",
        "a process is connected by a Unix socket to a process outside the container",
        "close the connection before the dump (a volume with the host's socket does this)",
    ),
    Cause(
        r"Can't dump ghost file (\S+) of (\d+) size",
        "a removed file that is still open is too large to carry: {0}, {1} bytes",
        "close it, or keep it in the file system",
    ),
    Cause(
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "the file {0} changed since the dump: it has {1} bytes instead of {2}",
        "restore with the files of the dump: from the checkpoint, not beside a changed volume",
    ),
    Cause(
        r"File (\S+) has bad mode",
        "the file {0} changed its mode since the dump",
        "restore with the files of the dump",
    ),
    Cause(
        r"Can't (?:open|fixup|link) (?:file )?(\S+).*No such file|(?:open|file) (\S+) .*No such file or directory",
        "a file that a process had open is missing: {0}",
        "a volume or layer differs from the one at the dump",
    ),
    Cause(
        r"Can't fork for (\d+): File exists|Pid (\d+) do not match|set_tid.*EEXIST",
        "the process id {0} is in use",
        "another process of that pid namespace has it",
        True,
    ),
    Cause(
        r"Can't bind inet socket.*Address already in use|bind.*Address already in use",
        "an address or port of the container is in use at this host",
        "stop what uses it, or give the container a network namespace of its own",
    ),
    Cause(
        r"Can't bind inet socket.*Cannot assign requested address",
        "an address of the container is not there at this host",
        "an established connection can only move together with its address (network l2 or bridge)",
    ),
    Cause(
        r"[Cc]pu.*(?:feature|capabilit|instruction).*(?:missing|not supported|mismatch|differ)|CPU.*features.*not (?:match|present)",
        "this host's CPU lacks features that the dumped processes use",
        "ckpt doctor shows the CPU's features; restore on an equal or newer CPU",
    ),
    Cause(
        r"vdso: Unexpected rt vDSO area bounds|vdso.*[Cc]an't (?:find|parse)",
        "this CRIU is too old for this kernel",
        "ckpt doctor --fix gets a newer CRIU",
    ),
    Cause(
        r"Can't get rlimit \d+: Operation not permitted",
        "CRIU may not read the limits of a process with another user id (no CAP_SYS_RESOURCE here)",
        "run the container in a user namespace (the default), or give this host CAP_SYS_RESOURCE",
    ),
    Cause(
        r"One or more namespaces doesn't belong to the target user namespace",
        "a namespace of the container was made outside its user namespace",
        "join no outside namespaces in a container that is to be dumped",
    ),
    Cause(
        r"session leader .* is outside of its pid namespace|leader .* is outside",
        "a process belongs to a session that was begun outside the container",
        "start it with `ckpt exec`, which gives it a session of its own",
    ),
    Cause(
        r"page-pipe: .*splice: Bad file descriptor|page-pipe: .*(?:Operation not permitted|Bad file)",
        "pipes cannot grow as large as CRIU needs",
        "sysctl -w fs.pipe-max-size=16777216",
    ),
    Cause(
        r"(?:timed? ?out|Timeout).*(?:freez|seiz|collect)|Timeout reached",
        "the processes could not be stopped in time",
        "one may hang in the kernel (state D in ps); try again",
        True,
    ),
    Cause(
        r"MAP_HUGETLB|hugetlb",
        "a process uses huge pages of hugetlbfs, which a streamed restore does not support",
        "use transparent huge pages instead",
    ),
    Cause(
        r"(\d+):? .*is (?:already )?(?:being )?(?:traced|ptraced)|ptrace.*[Oo]peration not permitted",
        "a process is being traced by a debugger",
        "end strace or gdb on it",
        True,
    ),
    Cause(
        r"Unable to open an userfaultfd descriptor",
        "the kernel forbids userfaultfd in a user namespace",
        "sysctl -w vm.unprivileged_userfaultfd=1",
    ),
    Cause(r"No space left on device", "the disk or a tmpfs is full", "free some space", True),
    Cause(
        r"Cannot allocate memory|Out of memory",
        "there is not enough memory, or the container's own limit is too low",
        "raise the limit or free memory",
        True,
    ),
    Cause(
        r"(?:Unsupported|Unknown|Can't dump).*(?:socket|sk).*(?:family|proto)",
        "a process has a socket of a kind that CRIU cannot dump",
    ),
    Cause(
        r"(?:soft-dirty|[Mm]em(?:ory)? ?[Tt]rack|dirty track)",
        "this kernel does not track dirty pages",
        "ckpt doctor lists what the kernel lacks",
    ),
)

# Errors that come in every run of a host without CAP_SYS_RESOURCE or nft tables, and mean nothing.
_HARMLESS = re.compile(
    r"rlimit: Can't setup RLIMIT|iptables|ip6tables|nftables: .*not (?:found|available)"
)
_ERROR = re.compile(r"\) (?:Error|\d+: Error)|^Error|BUG at")


def translate(log: Path, *, doing: str, target: str, status: int | None = None) -> CriuFault:
    """The fault that CRIU's LOG tells of. STATUS: its exit status, for when the log says nothing."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [
        n for n, line in enumerate(lines) if _ERROR.search(line) and not _HARMLESS.search(line)
    ]
    why, hint, retry = "", "", False
    for cause in CAUSES:
        for number in errors:
            match = re.search(cause.pattern, lines[number])
            if match:
                found = [group for group in match.groups() if group] or ["?"]
                why = cause.why.format(*found, *["?"] * 3)
                hint, retry = cause.hint, cause.retry
                break
        if why:
            break
    if not why and errors:
        why = "CRIU gave up: " + lines[errors[0]].partition("Error ")[2]
    if not why:
        why = (
            "CRIU was killed" if status is not None and status < 0 else f"CRIU ended with {status}"
        )
        hint = "its log says nothing; dmesg may"
    fault = CriuFault(doing=doing, target=target, why=why, hint=hint, retry=retry)
    if errors:
        start = max(0, errors[0] - 3)
        fault.lines = tuple(lines[start : errors[0] + 4])
    fault.log = str(log)
    return fault
