"""The record of a container: what ckpt knows of it, one atomic file; and its status, which the monitor writes.

Two files because there are two writers. `record.json` says what the container is and is written by ckpt's commands
under the container's lock; `status.json` says how it fares and is written by its monitor alone. Whether the monitor
is there is asked of the kernel each time, never remembered.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from runtime import proc
from runtime.errors import BadInput, Conflict, NotFound, WrongState
from runtime.files import publish_json, read_json
from runtime.paths import ContainerPaths, HostPaths

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
FORMAT = 1
LIVE = ("created", "running", "restoring")
"""States in which a container has processes."""


def check_name(name: str, what: str = "container name") -> str:
    """NAME if it is one: letters, digits, `_ . -`, at most 63, the first a letter or digit."""
    if not NAME.fullmatch(name):
        raise BadInput(
            doing="checking",
            target=f"{what} {name!r}",
            why="a name has 1 to 63 letters, digits, '_', '.' or '-', and begins with a letter or digit",
        )
    return name


@dataclass(slots=True)
class Record:
    """Everything about a container that its processes' end does not change."""

    id: str
    name: str
    created_ns: int
    spec: dict[str, Any]
    layers: list[str]
    """Digests, uppermost first."""
    id_base: int
    """First host id of its user namespace's range; 0: no user namespace."""
    id_size: int
    network: dict[str, Any]
    stdin: bool = False
    remove: bool = False
    """Delete it when it ends."""
    restart: dict[str, Any] = field(default_factory=lambda: {"policy": "no", "max": 0})
    restarts: int = 0
    wanted: str = "created"
    """What its user asked for last: created, begun (a `run` that hasn't started it yet), running or stopped.

    A reboot brings back what is wanted running.
    """
    log: dict[str, int] = field(default_factory=lambda: {"max_bytes": 16 << 20, "files": 4})
    origin: str = ""
    """Where it came from: a migration's or checkpoint's name."""
    brought: list[str] = field(default_factory=list)
    """Volumes that came with it, and go with it, until it runs."""
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Record:
        known = {entry.name for entry in fields(cls)}
        if value.get("format") != FORMAT or set(value) - known:
            raise BadInput(
                doing="reading",
                target=f"the record of container {value.get('name')}",
                why=f"its format {value.get('format')} is not {FORMAT}",
                hint="it was written by another version of ckpt",
            )
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Status:
    """What the monitor wrote last, checked against the kernel."""

    state: str
    """creating, created, running, restoring, stopped; `lost`: the monitor is gone, though nobody ended it."""
    values: dict[str, Any]

    @property
    def init_pid(self) -> int:
        return int(self.values.get("init_pid") or 0)

    @property
    def exit_code(self) -> int | None:
        return self.values.get("exit_code")


class Container:
    """A record with its place on this host."""

    def __init__(self, host: HostPaths, record: Record) -> None:
        self.host = host
        self.record = record
        self.paths: ContainerPaths = host.container(record.id)

    def save(self) -> None:
        self.paths.home.mkdir(mode=0o711, parents=True, exist_ok=True)
        publish_json(self.paths.record, self.record.to_dict())

    def status(self) -> Status:
        """How it is now. A `status.json` that speaks of a living monitor which isn't there means `lost`."""
        try:
            values = read_json(self.paths.status)
        except FileNotFoundError:
            return Status("creating", {})
        state = values["state"]
        if state != "stopped" and not _alive(values["monitor_pid"], values["monitor_ticks"]):
            state = "lost"
        return Status(state, values)

    def require(self, *states: str, doing: str) -> Status:
        """The status, if it is one of STATES; else WrongState."""
        status = self.status()
        if status.state not in states:
            raise WrongState(
                doing=doing,
                target=f"container {self.record.name}",
                why=f"it is {status.state}, not {' or '.join(states)}",
            )
        return status


def _alive(pid: int, ticks: int) -> bool:
    try:
        fields = proc.stat(pid)
    except OSError:
        return False
    return int(fields[19]) == ticks and fields[0] != b"Z"


def new_id(host: HostPaths) -> str:
    """Twelve random hex digits that no container here has."""
    while True:
        identity = secrets.token_hex(6)
        if not host.container(identity).home.exists():
            return identity


def all_containers(host: HostPaths) -> list[Container]:
    """Every container of the host, oldest first. One that vanishes meanwhile is left out."""
    found = []
    if host.containers.is_dir():
        for entry in host.containers.iterdir():
            try:
                found.append(Container(host, Record.from_dict(read_json(entry / "record.json"))))
            except FileNotFoundError:
                continue
    return sorted(found, key=lambda container: container.record.created_ns)


def find(host: HostPaths, name: str) -> Container:
    """The container with that name, or whose id begins so (at least 4 digits). Raises NotFound, Conflict."""
    everything = all_containers(host)
    for container in everything:
        if container.record.name == name:
            return container
    matches = [c for c in everything if len(name) >= 4 and c.record.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Conflict(doing="finding", target=f"container {name}", why="several ids begin so")
    raise NotFound(
        doing="finding",
        target=f"container {name}",
        why="there is none with that name or id",
        hint="ckpt ps --all shows those that are there",
    )


def check_free(host: HostPaths, name: str) -> None:
    """Raises Conflict when a container has that name."""
    for container in all_containers(host):
        if container.record.name == name:
            raise Conflict(
                doing="naming",
                target=f"a container {name}",
                why=f"container {container.record.id} has that name",
                hint=f"ckpt rm {name}, or choose another name",
            )
