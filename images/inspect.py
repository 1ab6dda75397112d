"""What is in a dump: processes, files, sockets, memory; read from its images, page data never.

CRIU's images are tables that refer to one another: pstree.img has the processes; core-PID.img each
thread; ids-PID.img says which tables a process shares with others (threads with CLONE_FILES have
one fdinfo image); mm-PID.img and pagemap-PID.img have its memory; files.img has every open file.
"""

from __future__ import annotations

import os
from typing import Any

from images.errors import Corrupt, ImageFault
from images.image_file import Entry, load_image
from images.inspect_files import OpenFiles
from images.inspect_memory import image_sizes, memory_kinds, page_map_of, shared_memory
from images.inspection import Inspection, Process, Thread
from images.moving import os_fault
from images.parts import INVENTORY

STATISTICS = "stats-dump"
"""CRIU writes it beside its log, not into the stream; shown if the dump was stored with it."""

_STATES = {1: "running", 2: "dead", 3: "stopped", 6: "dead"}
"""CRIU, compel/include/uapi/task-state.h: a zombie is dumped as 2."""


def inspect_images(directory: str) -> Inspection:
    """Everything about the dump in a directory (Checkpoint.criu_dir, for one).

    Raises Corrupt naming the image that is missing, cut or unreadable.
    """
    try:
        sizes = image_sizes(directory)
    except OSError as error:
        raise os_fault(error, doing="inspecting", target=directory) from error
    names = list(sizes)
    try:
        return _inspect(directory, names, sizes)
    except ImageFault:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        # A table that can be parsed but lacks what it must have, or refers to nothing.
        raise Corrupt(
            doing="inspecting",
            target=os.path.basename(directory),
            why=f"the images contradict one another ({type(error).__name__}: {error})",
        ) from error


def _inspect(directory: str, names: list[str], sizes: dict[str, int]) -> Inspection:
    if INVENTORY not in names:
        raise Corrupt(
            doing="inspecting", target=INVENTORY, why="it is missing: the dump never ended"
        )
    load_image(directory, INVENTORY, "INVENTORY")
    files = OpenFiles(directory, names)
    processes = tuple(
        _process(directory, names, files, item)
        for item in load_image(directory, "pstree.img", "PSTREE")
    )
    if not processes:
        raise Corrupt(doing="inspecting", target="pstree.img", why="it has no process")
    statistics = _statistics(directory, names)
    return Inspection(
        processes=processes,
        sockets=files.sockets(),
        pipes=files.pipes(),
        shared_memory=shared_memory(directory, names),
        images=sizes,
        times={n: v for n, v in statistics.items() if n.endswith("_time")},
        counters={n: v for n, v in statistics.items() if not n.endswith("_time")},
    )


def _process(directory: str, names: list[str], files: OpenFiles, item: Entry) -> Process:
    pid = item["pid"]
    core = _one(directory, f"core-{pid}.img", "CORE")
    task: dict[str, Any] = core["tc"]
    state = _STATES.get(task["task_state"], f"state {task['task_state']}")
    common = {
        "pid": pid,
        "ppid": item["ppid"],
        "pgid": item["pgid"],
        "sid": item["sid"],
        "comm": task["comm"],
        "state": state,
    }
    if state == "dead":
        # A zombie has neither memory nor files, and its credentials are gone.
        return Process(
            **common, uid=None, gid=None, executable="", directory="", threads=(), files=(),
            memory=(),
        )  # fmt: skip
    mm = _one(directory, f"mm-{pid}.img", "MM")
    # CRIU keeps tables that are shared under the id of the table.
    files_id = _table_id(directory, names, pid, "files_id")
    fs_name = f"fs-{pid}.img"
    fs = _one(directory, fs_name, "FS") if fs_name in names else {}
    credentials = core["thread_core"].get("creds", {})
    return Process(
        **common,
        uid=credentials.get("euid"),
        gid=credentials.get("egid"),
        executable=files.path(mm["exe_file_id"]),
        directory=files.path(fs.get("cwd_id", 0)),
        threads=tuple(_thread(directory, pid, tid, core) for tid in item["threads"]),
        files=files.of_process(pid, files_id),
        memory=memory_kinds(mm, page_map_of(directory, names, pid)),
    )


def _thread(directory: str, pid: int, tid: int, leader: Entry) -> Thread:
    core = leader if tid == pid else _one(directory, f"core-{tid}.img", "CORE")
    return Thread(tid, core.get("thread_core", {}).get("comm") or leader["tc"]["comm"])


def _table_id(directory: str, names: list[str], pid: int, key: str) -> int:
    name = f"ids-{pid}.img"
    ids = _one(directory, name, "IDS") if name in names else {}
    number: int = ids.get(key, pid)
    return number


def _one(directory: str, name: str, magic: str) -> Entry:
    entries = load_image(directory, name, magic)
    if len(entries) != 1:
        raise Corrupt(doing="reading", target=name, why=f"{len(entries)} entries instead of one")
    return entries[0]


def _statistics(directory: str, names: list[str]) -> dict[str, int]:
    if STATISTICS not in names:
        return {}
    found: dict[str, int] = _one(directory, STATISTICS, "STATS").get("dump", {})
    return {name: value for name, value in found.items() if isinstance(value, int)}
