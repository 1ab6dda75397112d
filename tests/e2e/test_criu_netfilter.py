"""What is preloaded into CRIU: an empty table of connections isn't walked; a socket that would wait isn't closed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import preload
from runtime.criu.binary import netfilter
from tests import needs

pytestmark = [needs.root, needs.compiler, needs.tool("nft"), needs.tool("ip")]

ASK = """
import socket, struct, sys
AF_NETLINK, NETLINK_NETFILTER = 16, 12
for kind in (1, 2):  # connections, expectations
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        question = struct.pack("=IHHIIBBH", 20, kind << 8 | 1, 0x301, 24680, 0, 0, 0, 0)
        sock.sendmsg([question], [], 0, (0, 0))
        answer = sock.recv(65536)
        print(*struct.unpack_from("=IHHI", answer)[1::2], answer[16:20].hex())
"""
SETUP = (
    "ip link set lo up && nft add table ip t "
    "&& nft 'add chain ip t c { type filter hook output priority 0; }' "
    "&& nft add rule ip t c ct state new accept"
)
TRAFFIC = "echo x > /dev/udp/127.0.0.1/9"


@pytest.mark.parametrize(
    ("prepare", "answers"),
    [
        # An acknowledgement without an error (NLMSG_ERROR, 0), for both.
        (SETUP, ["2 24680 00000000", "2 24680 00000000"]),
        # A connection, of type IPCTNL_MSG_CT_NEW; and no expectation, which ends at once (NLMSG_DONE).
        (f"{SETUP} && {TRAFFIC}", ["256 24680 02", "3 24680 00000000"]),
    ],
    ids=["empty", "tracking"],
)
def test_what_the_kernel_is_asked(tmp_path: Path, prepare: str, answers: list[str]) -> None:
    library = netfilter(tmp_path)
    asking = shlex.join(preload.command([sys.executable, "-c", ASK], [library], {}))
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", f"{prepare}; {asking}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[: len(want)] for line, want in zip(lines, answers, strict=True)] == answers


CLOSE = """
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)

def message(kind, flags, *attributes):
    body = struct.pack("=BBH", 1, 0, socket.htons(10)) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body

table = struct.pack("=HH4s", 8, 1, b"own")
for kind, flags in ((10 << 8 | 0, 0x401), (10 << 8 | 2, 0x1)):  # make a table, and delete it
    sock = socket.socket(16, socket.SOCK_RAW, 12)
    batch = message(0x10, 1) + message(kind, flags | 4, table) + message(0x11, 1)
    sock.sendmsg([batch], [], 0, (0, 0))
    (error,) = struct.unpack_from("=i", sock.recv(65536), 16)
    fd = sock.detach()
    print(error, libc.close(fd), os.path.exists(f"/proc/self/fd/{fd}"))
    print(libc.close(fd), os.path.exists(f"/proc/self/fd/{fd}"))
"""


def test_a_socket_over_which_a_table_was_deleted_is_closed_later(tmp_path: Path) -> None:
    argv = preload.command([sys.executable, "-c", CLOSE], [netfilter(tmp_path)], {})
    done = subprocess.run(["unshare", "--net", *argv], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 0 False", "-1 False", "0 0 True", "0 False"], done
