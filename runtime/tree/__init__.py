"""Move directory trees (upper directories, volumes, layers) exactly, while they are in use.

snapshot(dir) -> Index          what it looks like, by stat
diff(old, new) -> Changes       what changed between two snapshots (EMPTY: everything)
send(dir, changes, fd) -> Sent  write the changes as a stream
receive(fd, dir) -> Received    apply a stream, whoever wrote it
tree_digest(dir) -> str         equal trees have equal digests
known(old, new, changes, missed)  what the other end has then: the next round's old
remove_tree(dir)                delete it, however deep
Synchroniser(dir).round(fd)     the three steps of the source, round after round
"""

from __future__ import annotations

from .digest import tree_digest
from .ids import IdShift
from .index import EMPTY, Changes, Entry, Index, diff, known, snapshot
from .mapped import below, shared_writable
from .receive import Received, receive
from .remove import remove_tree
from .send import BlockMap, Sent, send
from .sync import Synchroniser

__all__ = [
    "EMPTY",
    "BlockMap",
    "Changes",
    "Entry",
    "IdShift",
    "Index",
    "Received",
    "Sent",
    "Synchroniser",
    "below",
    "diff",
    "known",
    "receive",
    "remove_tree",
    "send",
    "shared_writable",
    "snapshot",
    "tree_digest",
]
