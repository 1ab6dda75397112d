"""Which memory of a process may be hidden from CRIU, because its restore leaves it to the pager.

CRIU's rule (vma_entry_can_be_lazy in criu/include/vma.h): anonymous, private, not locked, not of huge pages of
hugetlbfs. A hidden page of anything else would be lost: of a private file mapping, the file's page would come instead.
The first thread's stack would be allowed, but grows downwards by itself, and CRIU has its own idea of it.

What was written to private mappings of files may be hidden if somebody puts it in place after the restore, before the
task runs (runtime/pagecache/place.py): CRIU maps the file, and the pages are what they were.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime import proc
from runtime.tracking.ranges import Range, merged
from runtime.tracking.vmas import Vma, mappings

LEAST_COPIED = 256 << 10
"""Bytes of a file's mapping. What is smaller (the data of most libraries) has a page or two to carry, which CRIU dumps
in less time than it takes to look."""
_SPECIAL_FLAGS = frozenset({"lo", "ht", "ss", "gd", "dp", "io", "pf"})
"""VmFlags of smaps: locked, huge, shadow stack, grows down, droppable, device memory."""


def carryable(pid: int, vmas: Sequence[Vma] | None = None) -> list[Range]:
    """Sorted ranges. VMAS: its mappings, if they are known already.

    Exact if the process is frozen. Raises OSError when it has gone.

    /proc/PID/maps doesn't tell all. smaps does, but makes the kernel look at every page (12 ms per GiB), so it is asked
    only where the process has locked memory or a shadow stack.
    """
    candidates = [vma for vma in vmas or mappings(pid) if is_candidate(vma)]
    if _has_special(pid):
        special = _special(pid)
        candidates = [vma for vma in candidates if (vma.start, vma.end) not in special]
    return merged((vma.start, vma.end) for vma in candidates)


def carryable_copies(pid: int, vmas: Sequence[Vma] | None = None) -> list[Range]:
    """The same, of private mappings of files that may be written: where what was written may be hidden."""
    if proc.status_field(pid, "HugetlbPages") not in ("", "0 kB"):
        return []  # a file of hugetlbfs has any name
    return merged((vma.start, vma.end) for vma in vmas or mappings(pid) if is_copied(vma))


def is_candidate(vma: Vma) -> bool:
    """As far as /proc/PID/maps tells."""
    return vma.anonymous and vma.name != "[stack]"


def is_copied(vma: Vma) -> bool:
    """Whether what is written there is worth carrying."""
    return vma.copied and vma.end - vma.start >= LEAST_COPIED


def is_candidate_or_copied(vma: Vma) -> bool:
    return is_candidate(vma) or is_copied(vma)


def _has_special(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "VmLck" and value.split()[0] != "0":
                return True
            if name == "x86_Thread_features" and "shstk" in value:
                return True
    return False


def _special(pid: int) -> set[Range]:
    found = set()
    current: Range = (0, 0)
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                start, _, end = words[0].partition("-")
                current = (int(start, 16), int(end, 16))
            elif words[0] == "VmFlags:" and not _SPECIAL_FLAGS.isdisjoint(words[1:]):
                found.add(current)
    return found
