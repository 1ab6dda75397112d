"""What is preloaded into CRIU: an empty connection tracking table isn't walked, one with entries is."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import preload
from runtime.criu.dump import EMPTY_CONNTRACK
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
    library = preload.library(EMPTY_CONNTRACK, tmp_path)
    asking = shlex.join(preload.command([sys.executable, "-c", ASK], [library], {}))
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", f"{prepare}; {asking}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[: len(want)] for line, want in zip(lines, answers, strict=True)] == answers
