"""The spec as typed values. `Spec` wraps the dictionary.

The dictionary stays the one description of a container (it is what is stored and sent); these are
views of it, made when asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import mount_options

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup")
HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)


@dataclass(frozen=True, slots=True)
class Process:
    """`process`. `capabilities`, `rlimits`: as in the spec, for runtime.security."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    umask: int | None
    terminal: bool
    console_size: tuple[int, int] | None  # rows, columns
    no_new_privileges: bool
    oom_score_adj: int | None
    capabilities: dict[str, list[str]] = field(default_factory=dict)
    rlimits: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, process: Mapping[str, Any]) -> Process:
        """From the spec's `process`, also that of a job."""
        user = process.get("user") or {}
        size = process.get("consoleSize")
        return cls(
            args=tuple(process.get("args") or ()),
            env=tuple(process.get("env") or ()),
            cwd=process["cwd"],
            uid=user.get("uid", 0),
            gid=user.get("gid", 0),
            additional_gids=tuple(user.get("additionalGids") or ()),
            umask=user.get("umask"),
            terminal=bool(process.get("terminal")),
            console_size=(size["height"], size["width"]) if size else None,
            no_new_privileges=bool(process.get("noNewPrivileges")),
            oom_score_adj=process.get("oomScoreAdj"),
            capabilities=dict(process.get("capabilities") or {}),
            rlimits=list(process.get("rlimits") or ()),
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """One of `mounts`. `type` is "bind" for every bind mount; `flags`, `propagation`: MS_*."""

    destination: str
    type: str
    source: str
    flags: int
    propagation: int
    data: str
    idmap: str = ""

    @classmethod
    def from_dict(cls, mount: Mapping[str, Any]) -> Mount:
        """Raises ValueError naming an option that isn't known."""
        options = mount.get("options") or []
        kind = mount_options.mount_type(mount.get("type") or "", options)
        parsed = mount_options.parse(kind, options)
        return cls(
            mount["destination"],
            kind,
            mount.get("source") or "",
            parsed.flags,
            parsed.propagation,
            parsed.data,
            parsed.idmap,
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    """One of `linux.namespaces`. `path` is empty for a new one."""

    type: str
    path: str


@dataclass(frozen=True, slots=True)
class IdMap:
    """A range of ids: `size` ids from `container` on are `host`, `host` + 1, ..."""

    container: int
    host: int
    size: int


class Spec:
    """Typed access to a spec that is valid (load_bundle, from_flags, require_supported).

    `raw` is the dictionary itself.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def require_supported(self) -> None:
        """Raises BadInput or Unsupported for the first thing that ckpt can't honour, by path."""
        from .load import first_problem  # that one makes Specs

        fault = first_problem(self.raw, "config.json")
        if fault is not None:
            raise fault

    @property
    def _linux(self) -> dict[str, Any]:
        return self.raw.get("linux") or {}

    @property
    def process(self) -> Process:
        return Process.from_dict(self.raw["process"])

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """In the spec's order, which is the order to make them in."""
        return tuple(Mount.from_dict(mount) for mount in self.raw.get("mounts") or ())

    @property
    def root_path(self) -> str:
        """Absolute after load_bundle()."""
        return str(self.raw["root"]["path"])

    @property
    def root_readonly(self) -> bool:
        return bool((self.raw.get("root") or {}).get("readonly"))

    @property
    def hostname(self) -> str:
        return self.raw.get("hostname") or ""

    @property
    def domainname(self) -> str:
        return self.raw.get("domainname") or ""

    @property
    def hooks(self) -> dict[str, list[dict[str, Any]]]:
        """By kind (HOOKS), each {"path", "args", "env", "timeout"} as in the spec."""
        hooks = self.raw.get("hooks") or {}
        return {kind: list(hooks.get(kind) or ()) for kind in HOOKS}

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.raw.get("annotations") or {})

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        return tuple(
            Namespace(entry["type"], entry.get("path") or "")
            for entry in self._linux.get("namespaces") or ()
        )

    def namespace(self, kind: str) -> Namespace | None:
        """The namespace of a type, None if the container has the host's."""
        return next((entry for entry in self.namespaces if entry.type == kind), None)

    @property
    def uid_mappings(self) -> tuple[IdMap, ...]:
        return self._mappings("uidMappings")

    @property
    def gid_mappings(self) -> tuple[IdMap, ...]:
        return self._mappings("gidMappings")

    def _mappings(self, key: str) -> tuple[IdMap, ...]:
        return tuple(
            IdMap(entry["containerID"], entry["hostID"], entry["size"])
            for entry in self._linux.get(key) or ()
        )

    @property
    def devices(self) -> tuple[dict[str, Any], ...]:
        """{"path", "type", "major", "minor", "fileMode", "uid", "gid"} as in the spec."""
        return tuple(self._linux.get("devices") or ())

    @property
    def cgroups_path(self) -> str:
        return self._linux.get("cgroupsPath") or ""

    @property
    def resources(self) -> dict[str, Any]:
        """For runtime.cgroups."""
        return dict(self._linux.get("resources") or {})

    @property
    def seccomp(self) -> dict[str, Any]:
        """For runtime.security.seccomp; empty for no filter."""
        return dict(self._linux.get("seccomp") or {})

    @property
    def sysctl(self) -> dict[str, str]:
        return dict(self._linux.get("sysctl") or {})

    @property
    def masked_paths(self) -> tuple[str, ...]:
        return tuple(self._linux.get("maskedPaths") or ())

    @property
    def readonly_paths(self) -> tuple[str, ...]:
        return tuple(self._linux.get("readonlyPaths") or ())

    @property
    def rootfs_propagation(self) -> str:
        return self._linux.get("rootfsPropagation") or ""
