"""What can go wrong in `runtime`, as one family.

RuntimeFault
 +-- BadInput       what the caller gave is wrong (a size, a name, a spec's field): nothing changed
 +-- NotFound       the thing named isn't there
 +-- Conflict       the thing named is there already, or in somebody else's hands
 +-- Unsupported    right in itself, but this host, kernel or CRIU can't do it: another host may
 +-- NotPermitted   the kernel refused for want of a privilege
 +-- WrongState     the transition isn't possible from the state that the thing is in
 |    +-- NotExecutable     the container is there, but its command cannot be executed
 |         +-- CommandNotFound   ... because there is no such file
 +-- TimedOut       it took longer than allowed; the state was put back, or the text says it wasn't
 +-- SystemFault    a system call or a program failed for another reason

A kind exists only where a caller acts differently on it. Exit codes are not known here: they are
one table at ckpt's edge.
"""

from __future__ import annotations

import errno


class RuntimeFault(Exception):
    """Doing what, to what, why it failed, what to do next, and whether trying again makes sense."""

    def __init__(
        self, *, doing: str, target: str, why: str, hint: str = "", retry: bool = False
    ) -> None:
        super().__init__(doing, target, why, hint, retry)
        self.doing = doing
        self.target = target
        self.why = why
        self.hint = hint
        self.retry = retry

    def __str__(self) -> str:
        head = f"{self.doing} {self.target}".strip()
        tail = f" ({self.hint})" if self.hint else ""
        # One line that steers no terminal, whatever an outside program or a spec put into its texts.
        line = " ".join(f"{head}: {self.why}{tail}".split())
        return "".join(c if c.isprintable() else "?" for c in line)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own pickling passes args by position; ours are by keyword only.
        return _rebuild, (type(self), self.doing, self.target, self.why, self.hint, self.retry)


def _rebuild(
    kind: type[RuntimeFault], doing: str, target: str, why: str, hint: str, retry: bool
) -> RuntimeFault:
    return kind(doing=doing, target=target, why=why, hint=hint, retry=retry)


class BadInput(RuntimeFault):
    """What the caller gave is wrong; nothing was touched."""


class NotFound(RuntimeFault):
    """The thing named isn't there."""


class Conflict(RuntimeFault):
    """The thing named exists already, or belongs to somebody else."""


class Unsupported(RuntimeFault):
    """Right in itself, but this host can't do it; another one may."""


class NotPermitted(RuntimeFault):
    """The kernel refused for want of a privilege."""


class WrongState(RuntimeFault):
    """The transition isn't possible from the present state."""


class NotExecutable(WrongState):
    """A command in a container cannot be executed; shells call that 126."""


class CommandNotFound(NotExecutable):
    """There is no such command in the container; shells call that 127."""


class TimedOut(RuntimeFault):
    """It took longer than allowed."""


class SystemFault(RuntimeFault):
    """A system call or a program failed for a reason that no other kind names."""


_KIND_OF_ERRNO: dict[int, type[RuntimeFault]] = {
    errno.EPERM: NotPermitted,
    errno.EACCES: NotPermitted,
    errno.ENOENT: NotFound,
    errno.ESRCH: NotFound,
    errno.EEXIST: Conflict,
    errno.EBUSY: Conflict,
    errno.ENOSYS: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.ETIMEDOUT: TimedOut,
}
_WORTH_ANOTHER_TRY = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT})


def from_os_error(error: OSError, *, doing: str, target: str, hint: str = "") -> RuntimeFault:
    """The kind of fault that `error`'s errno means. Use as `raise from_os_error(e, ...) from e`."""
    kind = _KIND_OF_ERRNO.get(error.errno or 0, SystemFault)
    why = error.strerror or str(error)
    retry = error.errno in _WORTH_ANOTHER_TRY
    return kind(doing=doing, target=target, why=why, hint=hint, retry=retry)
