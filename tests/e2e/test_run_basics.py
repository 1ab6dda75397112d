"""run, create, start, stop, kill, rm, ps, inspect, wait, rename: the life of a container."""

from __future__ import annotations



from tests import needs
from tests.e2e.box import Box, until

pytestmark = [needs.root, needs.overlayfs, needs.tool("busybox"), needs.compiler]


def test_run_prints_what_the_command_writes_and_ends_with_its_status(box: Box) -> None:
    done = box.call(
        "run",
        "--rm",
        "--network",
        "none",
        box.rootfs,
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert box.names() == []
