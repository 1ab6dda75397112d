"""The mappings of a process (proc_pid_maps(5))."""

from __future__ import annotations

from dataclasses import dataclass

_KERNELS = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"})
_NO_FILES = ("/memfd:", "/SYSV", "/anon_hugepage", "/dev/", "/[")
"""Names of what has an inode, but no file whose pages a private mapping would begin with."""


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping: [start, end)."""

    start: int
    end: int
    permissions: str  # "rw-p"
    offset: int
    device: str
    inode: int
    name: str

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"

    @property
    def kernels(self) -> bool:
        """Put there by the kernel for itself: nothing of the program's."""
        return self.name in _KERNELS

    @property
    def anonymous(self) -> bool:
        """Private memory without a file behind it: heap, stacks, most of what a program has."""
        return not self.shared and not self.inode and not self.kernels

    @property
    def copied(self) -> bool:
        """Private, of a file, and to be written: pages that are written become copies, the others stay the file's."""
        return (
            self.permissions[1] == "w"
            and not self.shared
            and bool(self.inode)
            and self.name.startswith("/")
            and not self.name.startswith(_NO_FILES)
        )


def mappings(pid: int) -> list[Vma]:
    """Of the whole process, by address. Raises OSError; empty for a zombie."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        return [_parse(line) for line in file]


def _parse(line: str) -> Vma:
    fields = line.rstrip("\n").split(None, 5)
    start, _, end = fields[0].partition("-")
    name = fields[5] if len(fields) > 5 else ""
    return Vma(
        int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], int(fields[4]), name
    )


def anonymous(vma: Vma) -> bool:
    """A `Select`: private anonymous memory, which trackers are good at."""
    return vma.anonymous


def programs(vma: Vma) -> bool:
    """A `Select`: all that a program can have written."""
    return not vma.kernels
