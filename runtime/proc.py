"""What proc(5) says of a process. Few imports: the monitor has this loaded."""

from __future__ import annotations


def stat(pid: int, tid: int = 0) -> list[bytes]:
    """proc_pid_stat(5) of a process, or of its thread TID, from field 3, the state, on. Raises OSError.

    What stands before may hold anything: the second field is a name that the process chose.
    """
    path = f"/proc/{pid}/task/{tid}/stat" if tid else f"/proc/{pid}/stat"
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()


def state(pid: int, tid: int = 0) -> str:
    """One letter: R, S, D, T, t, Z, X; X also for one that is gone. Raises OSError."""
    try:
        return stat(pid, tid)[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_dying(pid: int) -> bool:
    """Whether it is in exit already, or gone: PF_EXITING in its flags (field 9). Raises OSError."""
    try:
        fields = stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & 0x4)


def boot_ticks(pid: int) -> int:
    """When it started, in clock ticks since boot: with the pid, a name that is never used twice. Raises OSError."""
    return int(stat(pid)[19])


def status_field(pid: int, name: str) -> str:
    """A field of proc_pid_status(5); "" where there is none such. Raises OSError."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(name.encode() + b":"):
                return line.partition(b":")[2].strip().decode()
    return ""


def number_inside(pid: int) -> int:
    """The process id as its own namespace sees it. Raises OSError; IndexError for one that has just gone."""
    return int(status_field(pid, "NSpid").split()[-1])
