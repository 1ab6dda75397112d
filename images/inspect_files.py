"""Open files of a dump: files.img describes each open file once, fdinfo-ID.img who has it."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Mapping

from images.image_file import Entry, load_image
from images.inspection import OpenFile, Pipe, Socket

_O_PATH = 0o10000000
_FLAGS = ((os.O_APPEND, "append"), (os.O_NONBLOCK, "nonblock"), (os.O_DIRECT, "direct"))

# In which field of a file entry the description of each type lies.
_FIELDS = {
    "REG": "reg",
    "INETSK": "isk",
    "NS": "nsf",
    "PACKETSK": "psk",
    "NETLINKSK": "nlsk",
    "EVENTFD": "efd",
    "EVENTPOLL": "epfd",
    "SIGNALFD": "sgfd",
    "TUNF": "tunf",
    "TIMERFD": "tfd",
    "INOTIFY": "ify",
    "FANOTIFY": "ffy",
    "EXT": "ext",
    "UNIXSK": "usk",
    "FIFO": "fifo",
    "PIPE": "pipe",
    "TTY": "tty",
    "MEMFD": "memfd",
    "BPFMAP": "bpf",
    "PIDFD": "pidfd",
}

_TCP_STATES = (
    "",
    "established",
    "syn-sent",
    "syn-received",
    "fin-wait-1",
    "fin-wait-2",
    "time-wait",
    "closed",
    "close-wait",
    "last-ack",
    "listening",
    "closing",
)
_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket"}
_PROTOCOLS = {6: "tcp", 17: "udp", 136: "udplite", 1: "icmp", 58: "icmpv6", 132: "sctp"}


class OpenFiles:
    """All open files of a dump. Raises Corrupt naming the file."""

    def __init__(self, directory: str, names: list[str]) -> None:
        self._directory = directory
        self._names = names
        self._files: dict[int, tuple[str, Entry]] = {}
        for entry in self._load("files.img", "FILES"):
            kind = entry["type"]
            self._files[entry["id"]] = (kind, entry.get(_FIELDS.get(kind, ""), {}))
        self._remapped = {e["orig_id"] for e in self._load("remap-fpath.img", "REMAP_FPATH")}
        self._memfds = {e["inode_id"]: e for e in self._load("memfd.img", "MEMFD_INODE")}
        self._ttys = {e["id"]: e for e in self._load("tty-info.img", "TTY_INFO")}
        self._owners: dict[int, list[str]] = defaultdict(list)

    def _load(self, name: str, magic: str) -> list[Entry]:
        return load_image(self._directory, name, magic) if name in self._names else []

    def path(self, file_id: int) -> str:
        """What a file id stands for; "" if the dump doesn't have it."""
        kind, entry = self._files.get(file_id, ("", {}))
        return self._describe(kind, entry)

    def of_process(self, pid: int, files_id: int) -> tuple[OpenFile, ...]:
        """The descriptors of one process, by number."""
        found = []
        for info in self._load(f"fdinfo-{files_id}.img", "FDINFO"):
            kind, entry = self._files.get(info["id"], (info["type"], {}))
            self._owners[info["id"]].append(f"{pid}:{info['fd']}")
            found.append(
                OpenFile(
                    fd=info["fd"],
                    kind=kind.lower(),
                    what=self._describe(kind, entry),
                    mode=_mode(entry.get("flags", 0)),
                    position=entry.get("pos") if kind in ("REG", "MEMFD") else None,
                    size=self._size(kind, entry),
                    deleted=info["id"] in self._remapped,
                    close_on_exec=bool(info["flags"] & 1),
                )
            )
        return tuple(sorted(found, key=lambda file: file.fd))

    def sockets(self) -> tuple[Socket, ...]:
        """After of_process() of every process: only then the owners are known."""
        queued: dict[int, int] = defaultdict(int)
        for packet in self._load("sk-queues.img", "SK_QUEUES"):
            queued[packet["id_for"]] += packet["length"]
        found = []
        for number, (kind, entry) in sorted(self._files.items()):
            if kind == "UNIXSK":
                found.append(self._unix(number, entry, queued[number]))
            elif kind == "INETSK":
                found.append(self._inet(number, entry, queued[number]))
        return tuple(found)

    def pipes(self) -> tuple[Pipe, ...]:
        """After of_process() of every process."""
        queued = {e["pipe_id"]: e["bytes"] for e in self._load("pipes-data.img", "PIPES_DATA")}
        queued |= {e["pipe_id"]: e["bytes"] for e in self._load("fifo-data.img", "FIFO_DATA")}
        ends: dict[int, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        paths: dict[int, str] = {}
        for number, (kind, entry) in self._files.items():
            if kind not in ("PIPE", "FIFO"):
                continue
            pipe_id = entry["pipe_id"]
            regular = self._files.get(entry.get("regf_id", 0), ("", {}))[1]
            flags = int(entry.get("flags") or regular.get("flags") or 0)
            paths[pipe_id] = regular.get("name", "") if kind == "FIFO" else ""
            readers, writers = ends[pipe_id]
            if flags & os.O_ACCMODE != os.O_WRONLY:
                readers += self._owners[number]
            if flags & os.O_ACCMODE != os.O_RDONLY:
                writers += self._owners[number]
        return tuple(
            Pipe(pipe_id, paths[pipe_id], queued.get(pipe_id, 0), tuple(readers), tuple(writers))
            for pipe_id, (readers, writers) in sorted(ends.items())
        )

    # ---- describing

    def _describe(self, kind: str, entry: Entry) -> str:
        match kind:
            case "REG":
                return str(entry.get("name", ""))
            case "PIPE" | "FIFO":
                regular = self._files.get(entry.get("regf_id", 0), ("", {}))[1]
                return str(regular.get("name") or f"pipe {entry.get('pipe_id', '?')}")
            case "UNIXSK":
                return _unix_name(entry) or f"unix socket {entry.get('ino', '?')}"
            case "INETSK":
                local, remote = _inet_names(entry)
                return f"{local} → {remote}" if remote else local
            case "MEMFD":
                return str(self._memfds.get(entry.get("inode_id", 0), {}).get("name", "memfd"))
            case "TTY":
                tty = self._ttys.get(entry.get("tty_info_id", 0), {})
                regular = self._files.get(entry.get("regf_id", 0), ("", {}))[1]
                return str(regular.get("name") or str(tty.get("type", "tty")).lower())
            case "EVENTPOLL":
                return f"epoll on {len(entry.get('tfd', ()))}"
            case "EVENTFD":
                return f"eventfd at {entry.get('counter', '?')}"
            case "INOTIFY" | "FANOTIFY":
                return f"{kind.lower()} on {len(entry.get('wd', ()) or entry.get('mark', ()))}"
            case _:
                return kind.lower()

    def _size(self, kind: str, entry: Entry) -> int | None:
        if kind == "REG":
            return entry.get("size")
        if kind == "MEMFD":
            return self._memfds.get(entry.get("inode_id", 0), {}).get("size")
        return None

    def _unix(self, number: int, entry: Entry, queued: int) -> Socket:
        peer = next(
            (e for k, e in self._files.values() if k == "UNIXSK" and e["ino"] == entry["peer"]),
            None,
        )
        remote = "" if not entry["peer"] else f"unix socket {entry['peer']}"
        return Socket(
            id=number,
            family="unix",
            type=_TYPES.get(entry["type"], str(entry["type"])),
            protocol="",
            state=_TCP_STATES[entry["state"]] if entry["state"] in (1, 7, 10) else "",
            local=_unix_name(entry) or f"unix socket {entry['ino']}",
            remote=(_unix_name(peer) or remote) if peer else remote,
            receive_queue=queued,
            send_queue=0,
            owners=tuple(self._owners[number]),
        )

    def _inet(self, number: int, entry: Entry, queued: int) -> Socket:
        local, remote = _inet_names(entry)
        state = entry["state"]
        receive, send = queued, 0
        stream = f"tcp-stream-{entry['ino']:x}.img"
        if stream in self._names:
            for tcp in self._load(stream, "TCP_STREAM"):
                receive, send = tcp["inq_len"], tcp["outq_len"]
        return Socket(
            id=number,
            family="inet6" if entry["family"] == socket.AF_INET6 else "inet",
            type=_TYPES.get(entry["type"], str(entry["type"])),
            protocol=_PROTOCOLS.get(entry["proto"], str(entry["proto"])),
            state=_TCP_STATES[state] if 0 <= state < len(_TCP_STATES) else str(state),
            local=local,
            remote=remote,
            receive_queue=receive,
            send_queue=send,
            owners=tuple(self._owners[number]),
        )


def _mode(flags: int) -> str:
    words = ["path" if flags & _O_PATH else ("r", "w", "rw", "?")[flags & os.O_ACCMODE]]
    words += [word for flag, word in _FLAGS if flags & flag]
    return ",".join(words)


def _unix_name(entry: Mapping[str, object]) -> str:
    """Abstract names begin with a NUL, shown as @ (unix(7), ss(8))."""
    name = entry.get("name", "")
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    text = str(name)
    if text.startswith("\0"):
        text = "@" + text[1:]
    return text.rstrip("\0")


def _inet_names(entry: Entry) -> tuple[str, str]:
    """Local and remote address with port; the remote one is "" if there is none."""
    local = _address(entry, "src_addr", "src_port")
    return local, _address(entry, "dst_addr", "dst_port") if entry.get("dst_port") else ""


def _address(entry: Entry, key: str, port: str) -> str:
    words = entry.get(key, [])
    if words and isinstance(words[0], str):  # pycriu made it readable
        text = words[0]
    else:
        # Words as they lie in memory, in network order within.
        raw = struct.pack(f"={len(words)}I", *words)
        text = str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else "?"
    number = entry.get(port, 0)
    return f"[{text}]:{number}" if ":" in text else f"{text}:{number}"
