"""What can go wrong with checkpoints as data.

ImageFault
├── BadInput         the caller's (or a user's) value is not acceptable
├── NotFound         no checkpoint or part of that name
├── Conflict         the name is taken, or the checkpoint is in use
├── NoSpace          disk, quota or a memory limit is used up
├── WrongVersion     made by a newer ckpt, or not a checkpoint stream at all
├── Corrupt          bytes are not what was written
│   └── Truncated    … because the end is missing
├── StreamerFault    the other end of a stream misbehaved: CRIU, or the peer of a checkpoint stream
│   ├── Stalled      … it moved no byte for too long
│   └── PeerGone     … it closed the stream while we were writing
├── Aborted          the writer of a checkpoint stream gave up, and said why
└── Cancelled        our own caller asked us to stop
"""

from __future__ import annotations


class ImageFault(Exception):
    """Base of every error of this package.

    doing: what was being done ("reading the checkpoint stream"); target: to what; why: the cause;
    hint: what to do next, may be empty; retry: whether doing the same again makes sense.
    """

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
        text = f"{self.doing} {self.target}: {self.why}"
        if self.hint:
            text += f" ({self.hint})"
        # Parts of this may come from untrusted bytes; one error is one line.
        return "".join(c if c.isprintable() else "?" for c in text)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.doing, self.target, self.why, self.hint, self.retry)


def _rebuild(
    kind: type[ImageFault], doing: str, target: str, why: str, hint: str, retry: bool
) -> ImageFault:
    return kind(doing=doing, target=target, why=why, hint=hint, retry=retry)


class BadInput(ImageFault):
    """A value given to us is not acceptable; nothing was changed."""


class NotFound(ImageFault):
    """There is no checkpoint or part of that name."""


class Conflict(ImageFault):
    """The name is taken, or the checkpoint is being used by somebody else."""


class NoSpace(ImageFault):
    """The disk, a quota or a memory limit is used up."""


class WrongVersion(ImageFault):
    """Written by a newer ckpt, or not in this format at all."""


class Corrupt(ImageFault):
    """The bytes are not those that were written."""


class Truncated(Corrupt):
    """The end is missing."""


class StreamerFault(ImageFault):
    """The other end of a stream misbehaved."""


class Stalled(StreamerFault):
    """The other end of a stream moved no byte within the time allowed."""


class PeerGone(StreamerFault):
    """The other end closed the stream while it was being written."""


class Aborted(ImageFault):
    """The writer of a checkpoint stream gave up in good order and said why."""


class Cancelled(ImageFault):
    """The caller's cancel descriptor became readable."""
