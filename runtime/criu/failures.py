"""What CRIU's log means: the well-known failures as cause and remedy, and the lines that show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.criu.options import GHOST_LIMIT
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
        r"io_uring|Can't retrieve FDs from socket",
        "a process uses io_uring, which CRIU cannot dump",
        "switch it off in the program (for instance UV_USE_IO_URING=0), or block it with seccomp",
    ),
    Cause(
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "the file {0} changed since the dump: it has {1} bytes instead of {2}",
        "restore with the files of the dump: volumes and directories of the host are not in a stored checkpoint",
    ),
    Cause(
        r"File (\S+) has bad (mode|build-ID)",
        "the file {0} changed since the dump: it has another {1}",
        "restore with the files of the dump: volumes and directories of the host are not in a stored checkpoint",
    ),
    Cause(
        r"Can't open file (\S+?)(?: on restore)?: No such file|Can't link (\S+) .*No such file",
        "a file that a process had open is missing: {0}",
        "restore with the files of the dump: volumes and directories of the host are not in a stored checkpoint",
    ),
    Cause(
        r"Can't dump ghost file (\S+) of (\d+) size",
        "a removed file that is still open is too large to carry: {0}, {1} bytes",
        f"close it, or keep it in the file system; up to {GHOST_LIMIT >> 20} MiB are carried",
    ),
    Cause(
        r"[Dd]angling tty|Found slave peer index|[Tt]oo many external terminals"
        r"|leads outside|Unable to find a tty driver|The tty .* overflow"
        r"|Can't lookup mount=\d+ for fd=-?\d+ path=\S*(?:pts/\d+|ptmx|tty\S*)",
        "a process has a terminal whose other end is outside the container",
        "start it with `ckpt run -t` or `ckpt exec -t`, whose terminals live inside",
    ),
    Cause(
        r"Can't lookup mount=\d+ for fd=(-?\d+) path=(\S+)",
        "a process holds a file from outside the container: {1}, descriptor {0}",
        "start it without inherited descriptors; `ckpt exec` and `ckpt run` pass none on",
    ),
    Cause(
        r"External socket (?:is used|found)|Can't dump half of stream unix connection"
        r"|name-less external socket|Dangling connection|Unix socket \d+ (?:without|with unreachable) peer",
        "a process is connected by a Unix socket to a process outside the container",
        "close the connection before the dump; a volume with a socket of the host makes such",
    ),
    Cause(
        r"Unable to dump a socket from an external network namespace",
        "a process has a socket of another network namespace",
        "make the socket inside the container",
    ),
    Cause(
        r"Can't fork for (\d+): File exists|Pid (\d+) do not match|set_tid.*File exists"
        r"|Can't set last_pid",
        "the process id {0} is in use",
        "another process of that pid namespace has it: restore into a fresh container",
        True,
    ),
    Cause(
        r"Can't bind inet socket.*Address already in use|[Bb]ind.*Address already in use",
        "an address or port of the container is in use at this host",
        "stop what uses it, or give the container a network of its own (--network bridge)",
        True,
    ),
    Cause(
        r"(?:Can't bind inet socket|[Bb]ind|[Cc]onnect).*Cannot assign requested address",
        "an address of the container is not there at this host",
        "an established connection can only move together with its address (network l2 or bridge)",
    ),
    Cause(
        r"CPU (?:instruction )?capabilities do not match|FPU feature required by image"
        r"|CPU xfeatures has unsupported bits|CPU xsave (?:max )?size mismatch"
        r"|CPU Feature \S+ (?:missing|not supported)",
        "this host's CPU lacks features that the dumped processes use",
        "restore on an equal or newer CPU; ckpt checkpoints inspect --json lists what it had",
    ),
    Cause(
        r"vdso: Unexpected rt vDSO area bounds|Can't find (?:rt vDSO|vDSO/VVAR bounds)|kerndat_vdso\S+ failed",
        "this CRIU is too old for this kernel",
        "ckpt doctor --fix gets a newer CRIU",
    ),
    Cause(
        r"Can't get rlimit \d+: Operation not permitted",
        "CRIU may not read the limits of a process of another user: this host lacks CAP_SYS_RESOURCE",
        "run the container in a user namespace, which is the default, or give CAP_SYS_RESOURCE",
    ),
    Cause(
        r"One or more namespaces doesn't belong to the target user namespace",
        "a namespace of the container was made outside its user namespace",
        "join no outside namespaces in a container that is to be dumped",
    ),
    Cause(
        r"[Nn]ested (\S+) namespaces? (?:are|is) not supported",
        "a process made a {0} namespace of its own inside the container, which CRIU cannot dump",
    ),
    Cause(
        r"session leader .* is outside of its pid namespace|inheritance detected sid",
        "a process belongs to a session that was begun outside the container",
        "start it with `ckpt exec`, which gives it a session of its own",
    ),
    Cause(
        r"page-pipe: .*splice: Bad file descriptor|page-pipe: .*(?:Operation not permitted|Bad file)",
        "pipes cannot grow as large as CRIU needs",
        "sysctl -w fs.pipe-max-size=16777216",
    ),
    Cause(
        r"Timeout reached|Unable to freeze cgroup|timed? ?out.*(?:freez|seiz|collect)",
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
        r"[Tt]raced by|[Uu]nseizable|[Uu]nable to (?:interrupt|seize) task|SEIZE \d+",
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
        r"Unknown socket collected \(family (\d+)\)",
        "a process has a socket that CRIU cannot dump (address family {0})",
        "close it before the dump",
    ),
    Cause(
        r"Unsupported type \((\d+)\) on socket",
        "a process has a Unix socket of a type that CRIU cannot dump ({0})",
        "close it before the dump",
    ),
    Cause(
        r"In-flight connection|in-flight socket",
        "a connection to a Unix socket was not accepted yet",
        "try again",
        True,
    ),
    Cause(
        r"is a fuse mount but not external",
        "a FUSE file system is mounted inside the container, which CRIU cannot dump",
        "unmount it before the dump",
    ),
    Cause(
        r"[Ss]oft-dirty|[Mm]em(?:ory)? ?[Tt]rack|[Dd]irty track",
        "this kernel does not track dirty pages",
        "ckpt doctor lists what the kernel lacks",
    ),
    Cause(
        r"Diag module missing|(?:syscall|UFFD|[Tt]ime namespaces?|cgroupns|CPUID faulting)\S* (?:is|are) not supported"
        r"|[Kk]ernel (?:does ?n.t|lacks).*support|kernel commit \w+ is missing",
        "this kernel lacks a feature that CRIU needs",
        "ckpt doctor lists what the kernel lacks",
    ),
)

# Errors that come in every run of a host without CAP_SYS_RESOURCE or nft tables, and mean nothing.
_HARMLESS = re.compile(
    r"rlimit: Can't setup RLIMIT|iptables|ip6tables|nftables: .*not (?:found|available)"
    r"|cgroupd: recv req error"
)
# `(00.012345) Error (criu/x.c:1): …`; with the pid of the task in between, padded, when a task says it.
_ERROR = re.compile(r"\)\s+(?:\d+: )?Error|^Error|BUG at|^pie: \d+: Error")
# What CRIU says on its way out, after whatever made it give up.
_ECHO = re.compile(r"Restoring FAILED|Dumping FAILED|exited, status=|failed with -1")


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
    # The cause is said first, unless an echo of it overtook it in the log.
    errors.sort(key=lambda number: bool(_ECHO.search(lines[number])))
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
        fault.lines = tuple(_plain(line) for line in lines[start : errors[0] + 4])
    fault.log = str(log)
    return fault


def _plain(line: str) -> str:
    """LINE without what a terminal would obey: paths in it are named by whoever is inside the container."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in line)
