"""Taking on credentials: the one module of this package that the container's first stage imports.

It imports nothing but the system calls, since it runs in the small monitor's child.
"""

from __future__ import annotations

import errno
import os

from runtime import syscalls

TYPE_CHECKING = False  # importing typing would cost the small monitor half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_HIGHEST = 63  # the masks of capset(2) have 64 bits


def apply_capabilities(
    plan: Mapping[str, Any], *, uid: int, gid: int, groups: Sequence[int] = ()
) -> None:
    """Become `uid`, `gid`, `groups` with the capabilities of `plan` and no others, for good.

    `plan` is `Capabilities.plan()`: masks "bounding", "permitted", "effective", "inheritable" and
    the list "ambient". What this process lacks is left out: it can't give it. Raises OSError.

    The order is the kernel's (capabilities(7)): dropping from the bounding set and changing ids
    need capabilities of their own, so they come first; setuid would take the permitted set away
    unless it is told to keep it; it empties the effective and ambient sets in any case, so those
    come last. An ambient capability has to be permitted and inheritable when it is raised.
    """
    have = _narrow_bounding(plan["bounding"])
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    permitted = plan["permitted"] & have
    inheritable = plan["inheritable"] & have
    syscalls.capset(plan["effective"] & permitted, permitted, inheritable)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in plan["ambient"]:
        if permitted & inheritable & 1 << number:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)


def _narrow_bounding(keep: int) -> int:
    """Drop what isn't in `keep`, also capabilities newer than this code; what was there before."""
    have = 0
    for number in range(_HIGHEST + 1):
        try:
            there = syscalls.prctl(syscalls.PR_CAPBSET_READ, number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the kernel's last one was the one before
        if there:
            have |= 1 << number
            if not keep & 1 << number:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    return have
