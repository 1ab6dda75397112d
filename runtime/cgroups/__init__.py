"""Cgroups of containers: v1, v2 and hybrid behind one face.

layout = detect()
resources = Resources.from_oci(spec["linux"]["resources"])
require(layout, resources)                      # before anything is made
cgroup = create(layout, layout.default_parent, "web")
cgroup.apply(resources)
... a pid goes into each of cgroup.enter_paths() ...
cgroup.update(...), cgroup.stats(), cgroup.freeze(), cgroup.kill(), cgroup.remove()
"""

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.check import check, require
from runtime.cgroups.create import create, open
from runtime.cgroups.layout import Layout, Tree, detect
from runtime.cgroups.limits import Problem
from runtime.cgroups.monitors import monitors, remove_monitors
from runtime.cgroups.resources import Resources
from runtime.cgroups.stats import Stats

__all__ = [
    "Cgroup",
    "Layout",
    "Problem",
    "Resources",
    "Stats",
    "Tree",
    "check",
    "create",
    "detect",
    "monitors",
    "open",
    "remove_monitors",
    "require",
]
