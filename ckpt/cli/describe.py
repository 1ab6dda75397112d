"""`ckpt checkpoints inspect` for people: what `--json` says, as tables one below the other.

A table that would be empty is left out. Texts come from inside a container (names of processes, paths), so nothing in
them may reach the terminal as a control sequence.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from ckpt.cli import show
from images.manifest import Manifest

Found = Mapping[str, Any]
_WIDE = 72
_PHASES = (
    ("files", "frozen", "files copied once more"),
    ("dumped", "frozen", "all dumped"),
    ("resumed", "frozen", "running again"),
    ("killed", "frozen", "ended"),
)


def describe_checkpoint(manifest: Manifest, found: Found) -> None:
    """Print it. FOUND: images.inspection.Inspection as a dict."""
    for title, lines in _sections(manifest, found):
        shown = list(lines)
        if shown:
            click.echo(f"{title}:")
            for line in shown:
                click.echo(f"  {line}")


def _sections(manifest: Manifest, found: Found) -> Iterator[tuple[str, Iterable[str]]]:
    processes = found["processes"]
    yield "Checkpoint", _pairs(_summary(manifest, found))
    yield "Times", _pairs(_times(manifest.times))
    yield (
        "Processes",
        _columns(("PID", "USER", "STATE", "THREADS", "MEMORY", "COMMAND"), _tree(processes)),
    )
    yield (
        "Memory",
        _columns(
            ("KIND", "MAPPINGS", "MAPPED", "IN THE IMAGES"),
            _memory(processes, found["shared_memory"]),
        ),
    )
    yield (
        "Open files",
        _columns(("PID", "FD", "KIND", "MODE", "POSITION", "SIZE", "WHAT"), _files(processes)),
    )
    yield (
        "Sockets",
        _columns(
            ("KIND", "STATE", "LOCAL", "REMOTE", "QUEUED", "HELD BY"), _sockets(found["sockets"])
        ),
    )
    yield "Pipes", _columns(("PIPE", "QUEUED", "READERS", "WRITERS"), _pipes(found["pipes"]))
    yield "Largest parts", _columns(("PART", "SIZE"), _parts(manifest))
    yield "Not in it", (clean(line) for line in manifest.left_out)


# ---- the tables


def _summary(manifest: Manifest, found: Found) -> Iterator[tuple[str, str]]:
    created = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.created / 1e9))
    yield "name", manifest.name
    yield "container", f"{manifest.container_name} ({manifest.container_id})"
    yield "created", f"{created} ({show.ago(manifest.created)} ago)"
    yield "on", f"{manifest.host}: {manifest.arch}, kernel {manifest.kernel}, CRIU {manifest.criu}"
    yield "container ran on", "yes" if manifest.left_running else "no"
    if manifest.parent:
        yield "restored from", manifest.parent
    args = manifest.spec.get("process", {}).get("args", ())
    yield "command", " ".join(map(str, args))
    yield "network", _network(manifest.network)
    for number, digest in enumerate(manifest.rootfs.layers):
        yield "layers" if number == 0 else "", digest[:12]
    images = sum(found["images"].values())
    yield (
        "size",
        f"{show.size(manifest.size)}: images {show.size(images)}, files {show.size(manifest.size - images)}",
    )


def _network(network: Mapping[str, Any]) -> str:
    words = [str(network.get("kind", "?")), *map(str, network.get("addresses") or ())]
    return " ".join(words)


def _times(times: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for name, since, title in _PHASES:
        if name in times and since in times:
            yield title, f"{show.millis(times[name] - times[since])} after the freeze"


def _tree(processes: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    """Depth first, children below their parents as in pstree(1)."""
    children: dict[int, list[Found]] = {}
    pids = {process["pid"] for process in processes}
    for process in processes:
        parent = process["ppid"] if process["ppid"] in pids else 0
        children.setdefault(parent, []).append(process)
    shown: set[int] = set()

    def walk(parent: int, indent: str) -> Iterator[tuple[str, ...]]:
        below = children.get(parent, [])
        for process in below:
            if process["pid"] in shown:
                continue  # a damaged tree may have a ring
            shown.add(process["pid"])
            last = process is below[-1]
            branch = "" if not parent else ("└─ " if last else "├─ ")
            dumped = sum(kind["dumped"] for kind in process["memory"])
            user = "-" if process["uid"] is None else f"{process['uid']}:{process['gid']}"
            yield (
                str(process["pid"]),
                user,
                process["state"],
                str(len(process["threads"])),
                show.size(dumped),
                f"{indent}{branch}{process['comm']}  {process['executable']}",
            )
            deeper = "" if not parent else ("   " if last else "│  ")
            yield from walk(process["pid"], indent + deeper)

    yield from walk(0, "")


def _memory(processes: Sequence[Found], shared: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    sums: dict[str, list[int]] = {}
    for process in processes:
        for kind in process["memory"]:
            total = sums.setdefault(kind["kind"], [0, 0, 0])
            for at, key in enumerate(("mappings", "size", "dumped")):
                total[at] += kind[key]
    for name, (mappings, size, dumped) in sums.items():
        yield name, str(mappings), show.size(size), show.size(dumped)
    for one in shared:
        title = f"shared object {one['id']}" + (f" ({one['name']})" if one["name"] else "")
        yield title, "", "", show.size(one["dumped"])


def _files(processes: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    for process in processes:
        for file in process["files"]:
            yield (
                str(process["pid"]),
                str(file["fd"]),
                file["kind"],
                file["mode"],
                "" if file["position"] is None else str(file["position"]),
                "" if file["size"] is None else show.size(file["size"]),
                file["what"] + (" (removed)" if file["deleted"] else ""),
            )


def _sockets(sockets: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    for one in sockets:
        kind = "/".join(word for word in (one["family"], one["protocol"] or one["type"]) if word)
        queued = one["receive_queue"] + one["send_queue"]
        yield (
            kind,
            one["state"],
            one["local"],
            one["remote"],
            show.size(queued),
            _owners(one["owners"]),
        )


def _pipes(pipes: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    for one in pipes:
        name = one["path"] or str(one["id"])
        yield (
            name,
            show.size(one["queue"]),
            _owners(one["readers"]) or "outside",
            _owners(one["writers"]) or "outside",
        )


def _owners(owners: Sequence[str]) -> str:
    """PID:FD of each; many are cut short."""
    more = f" and {len(owners) - 6} more" if len(owners) > 6 else ""
    return " ".join(owners[:6]) + more


def _parts(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    ordered = sorted(manifest.parts, key=lambda part: part.size, reverse=True)
    for part in ordered[:8]:
        yield part.label, show.size(part.size)
    if len(ordered) > 8:
        yield f"{len(ordered) - 8} more", show.size(sum(part.size for part in ordered[8:]))


# ---- the form


def clean(text: object) -> str:
    """TEXT without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _pairs(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    found = [(clean(key), clean(value)) for key, value in rows]
    width = max((len(key) for key, _ in found), default=0)
    for key, value in found:
        yield f"{key.ljust(width)}  {value}".rstrip()


def _columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Left-aligned; the last column is as long as it likes, the others are cut. Nothing for no rows."""
    found = [[clean(cell) for cell in row] for row in rows]
    if not found:
        return
    lines = [list(head), *found]
    last = len(head) - 1
    for line in lines:
        line[:last] = [
            cell if len(cell) <= _WIDE else cell[: _WIDE - 1] + "…" for cell in line[:last]
        ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
