"""The OCI runtime spec: the one description of a container.

load_bundle(dir) -> Spec            read a bundle, refuse what isn't honoured
from_flags(Options) -> dict         the spec that flags mean
validate(dict) -> list of Problem   everything wrong with a spec, by JSON path
Spec(dict)                          typed access: Spec.process, Spec.mounts, ...
"""

from __future__ import annotations

from .checks import Problem
from .flags import (
    DISK,
    NETWORK,
    RESTART,
    DeviceRate,
    Options,
    from_flags,
    parse_tmpfs,
    parse_volume,
)
from .load import first_problem, load_bundle, parse
from .model import HOOKS, IdMap, Mount, Namespace, Process, Spec
from .users import User, resolve
from .validate import validate

__all__ = [
    "DISK",
    "HOOKS",
    "NETWORK",
    "RESTART",
    "DeviceRate",
    "IdMap",
    "Mount",
    "Namespace",
    "Options",
    "Problem",
    "Process",
    "Spec",
    "User",
    "first_problem",
    "from_flags",
    "load_bundle",
    "parse",
    "parse_tmpfs",
    "parse_volume",
    "resolve",
    "validate",
]
