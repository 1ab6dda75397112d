"""Lines of /proc/PID/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

import os

from runtime.mountinfo import mounts, parse


def test_a_line_is_a_mount_with_its_own_options_and_those_of_its_file_system() -> None:
    line = "36 35 98:7 /part /mnt2 ro,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue"
    (found,) = parse(line + "\n")
    assert (found.id, found.device) == (36, os.makedev(98, 7))
    assert (found.root, found.point) == ("/part", "/mnt2")
    assert (found.options, found.kind) == ({"ro", "noatime"}, "ext4")
    assert found.super_options == {"rw", "errors=continue"}


def test_a_path_may_have_any_characters() -> None:
    (found,) = parse("1 2 0:3 / /a\\040b\\134\u00a0\u2028ö rw - tmpfs tmpfs rw\n")
    assert found.point == "/a b\\\u00a0\u2028ö"


def test_ours_are_there() -> None:
    assert any(mount.point == "/proc" and mount.kind == "proc" for mount in mounts())
