"""What two builds of ckpt must have in common for a container to move between them.

The greeting's version number stands for frames, messages and their order (transport/messages.py). What lies inside of
them is free for the transport, and changes more often: preflight's facts, notes, streams, page records. It has a word,
CONTENTS, whose number goes up with each change that an earlier build would misunderstand. Modes are words as well.

Both ends look before anything is touched: the source at the other's greeting, the destination at `needs` in the
preflight's facts. So builds that differ are refused in one line, or move containers, whatever their version says; and
which build it is, is a part of what each calls itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ckpt
from ckpt.ops.elsewhere import far
from transport.errors import ProtocolFault, VersionMismatch, one_line
from transport.messages import check_greeting

CONTENTS = "contents-3"
_BEFORE = ["contents-1", "contents-2"]
"""1: without what processes share (SHARED among the page records). 2: without what they have written to private
mappings of files (numbers from COPIES_FROM on)."""
MODES = ("cold", "warm", "lazy")
FEATURES = [CONTENTS, *_BEFORE, *MODES]
"""What this build understands. An older number stays in the list as long as its contents are understood."""
Facts = Mapping[str, Any]

FROM_SOURCE: Mapping[str, type] = {
    "name": str, "container": str, "host": str, "arch": str, "kernel": str, "criu": str,
    "environment": dict, "cpu_features": list, "kernel_files": list, "layers": dict,
    "network": dict, "memory": int, "forked": int, "files": int, "volumes": list,
    "user_namespace": bool, "hooks": list, "binds": list, "needs": list,
}  # fmt: skip
FROM_DESTINATION: Mapping[str, type] = {
    "missing_layers": list, "volumes": dict, "software": str, "environment": dict, "arch": str,
    "kernel": str, "criu": str, "pipe_max": int, "not_warm": str, "memory_free": int,
    "disk_free": int,
}  # fmt: skip


@functools.cache
def software() -> str:
    """What this ckpt calls itself: its version, and which build of it, since versions change seldom."""
    build = far.digest(Path(ckpt.__file__).resolve().parent.parent)
    return f"ckpt {ckpt.__version__} build {build[:8]}"


def needs(mode: str) -> list[str]:
    """What a destination must understand for a move."""
    return [CONTENTS, mode]


def check_destination(hello: Facts) -> None:
    """HELLO: the fields of the greeting. Raises VersionMismatch."""
    check_greeting({"type": "hello", **hello}, needed=frozenset({CONTENTS}))


def why_no_mode(hello: Facts, mode: str) -> str:
    """Why the destination can't take part in such a move; "" if it can."""
    if mode in hello["features"]:
        return ""
    return f"the ckpt there ({one_line(hello['software'], 100)}) doesn't know it"


def check_source(facts: Facts) -> Facts:
    """FACTS of a preflight. Raises VersionMismatch, ProtocolFault."""
    wanted = facts.get("needs")
    if not isinstance(wanted, list):
        raise _mismatch("the source is of an older build, which doesn't say what it needs here")
    if missing := [word for word in wanted if word not in FEATURES]:
        raise _mismatch(f"the source needs {', '.join(map(str, missing))}, which is not known here")
    return _checked(facts, FROM_SOURCE, "the source")


def check_answer(facts: Facts) -> Facts:
    """FACTS of a report. Raises ProtocolFault."""
    return _checked(facts, FROM_DESTINATION, "the destination")


def _checked(facts: Facts, kinds: Mapping[str, type], who: str) -> Facts:
    for name, kind in kinds.items():
        if type(facts.get(name)) is not kind:
            raise ProtocolFault(
                doing="reading", target=f"what {who} says of itself",
                why=f"{name!r} is {'missing' if name not in facts else 'not what it should be'}",
                hint="install the same version of ckpt on both hosts",
            )  # fmt: skip
    return facts


def _mismatch(why: str) -> VersionMismatch:
    return VersionMismatch(
        doing="understanding", target=f"the other end ({software()} is here)", why=why,
        hint="install the same version of ckpt on both hosts",
    )  # fmt: skip
