"""The cgroup that all monitors are in: `monitors`, beside those of the containers.

A monitor outlives what started it: a login session, a service, an agent of another host. systemd ends those by their
cgroup in the v2 tree, with everything that is in it; so a monitor must not stay there. It doesn't belong into its
container's cgroup either, where it would count against the limits and be killed and frozen with the rest.

One for all, and it stays when it's empty: nobody has to know who is the last to leave. Who does know, because it began
with an empty machine (a demo, a run of tests), takes it away with remove_monitors(). Only in the v2 tree, by which
systemd goes (on hybrid hosts, too).
"""

from __future__ import annotations

import contextlib
import logging

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.create import make_parent
from runtime.cgroups.layout import Layout
from runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

NAME = "monitors"


def monitors(layout: Layout) -> str:
    """Where a monitor writes its pid, made if it isn't there; "" where there is no such place."""
    tree = layout.unified
    if tree is None:
        return ""
    try:
        make_parent(layout, tree, layout.default_parent)
        directory = f"{layout.default_parent}/{NAME}"
        make_parent(layout, tree, directory)
    except (OSError, RuntimeFault) as fault:
        # A container that runs from a session's cgroup is better than none.
        log.warning("monitors stay in the cgroup of their starters: %s", fault)
        return ""
    return f"{tree.path(directory)}/cgroup.procs"


def remove_monitors(layout: Layout) -> None:
    """Take the cgroup away, and its parent, if nothing is in them. A monitor that starts at this very moment stays in
    the cgroup of its starter."""
    directory = f"{layout.default_parent}/{NAME}"
    tree = layout.unified
    if tree is None:
        return
    with contextlib.suppress(OSError):  # in use, or not there
        if layout.fs.marked(tree.path(directory)):
            layout.fs.rmdir(tree.path(directory))
    Cgroup(layout, directory).remove_empty_parents()
