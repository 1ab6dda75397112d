"""The monitor of a container: small, alone, and hard to upset."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tests import needs
from tests.e2e.box import Box, until

pytestmark = needs.CONTAINERS


def monitor_of(box: Box, name: str) -> int:
    pid = box.one(name)["pid"]
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Rss")


def test_it_stays_small_whatever_it_did(box: Box) -> None:
    """12 MiB with most builds of Python, 12.2 with Debian 12's own, of which the interpreter takes 9."""
    box.up("c", args=("sh", "-c", "seq 1 20000; sleep 1000"))
    for _ in range(5):
        box("exec", "c", "dd", "if=/dev/zero", "bs=1M", "count=4", text=False)
    box("exec", "-d", "c", "sleep", "1000")
    assert resident(monitor_of(box, "c")) < 13 << 20


def test_it_is_nobody_s_child_and_holds_no_terminal(box: Box) -> None:
    box.up("c")
    monitor = monitor_of(box, "c")
    fields = Path(f"/proc/{monitor}/stat").read_text().rpartition(")")[2].split()
    session, terminal = int(fields[3]), int(fields[4])
    assert session == monitor or session != os.getsid(0)
    assert terminal == 0
    assert str(Path(f"/proc/{monitor}/cwd").readlink()) == "/"


def connected(box: Box, name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60)
    sock.connect(str(box.root / "run/c" / box.one(name)["id"] / "ctl"))
    return sock


def test_nonsense_on_its_socket_is_answered_and_harmless(box: Box) -> None:
    box.up("c")
    for packet in (b"{", b"{}", b'{"op": "run"}', b'{"op": "__init__"}', b'{"op": ["start"]}',
                   b'{"op": "exec"}', b'{"op": "attach", "job": "x"}', b'{"op": "kill"}',
                   b'{"op": "verdict", "status": 0}', b'{"op": "hold"}'):  # fmt: skip
        with connected(box, "c") as sock:
            sock.send(packet)
            assert "error" in json.loads(sock.recv(1 << 16))
    with connected(box, "c") as sock:
        for packet in (b"i", b"kNONSENSE", b"w1", b"\xff\xfe"):
            sock.send(packet)
        sock.send(b'{"op": "attach"}')
        assert json.loads(sock.recv(1 << 16))["attached"] == 0
        for packet in (b"kNONSENSE", b"k-1", b"w1", b"w1,2,3", b"\xff\xfe"):
            sock.send(packet)
    assert box("exec", "c", "echo", "alive") == "alive\n"


def test_only_root_may_speak_to_it(box: Box) -> None:
    box.up("c")
    path = box.root / "run/c" / box.one("c")["id"] / "ctl"
    assert path.stat().st_mode & 0o077 == 0


def test_a_client_that_never_reads_holds_up_nobody_else(box: Box) -> None:
    box.up(
        "c",
        args=("sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.1; done; seq 1 200000; sleep 1000"),
    )
    with connected(box, "c") as deaf:
        deaf.send(b'{"op": "attach"}')
        box("exec", "c", "touch", "/tmp/go")
        assert box("exec", "c", "echo", "alive") == "alive\n"
    until(lambda: "\n200000\n" in box("logs", "c"))  # once it is gone, the output goes on


def test_nothing_of_the_host_is_open_in_the_container(box: Box) -> None:
    box.up("c", "-i")
    pid = box.one("c")["pid"]
    child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    for process in (pid, child):
        for fd in Path(f"/proc/{process}/fd").iterdir():
            target = str(fd.readlink())
            assert target.startswith(("pipe:", "anon_inode:[signalfd]", "/dev/null")), target
