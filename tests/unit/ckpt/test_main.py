"""Where the program begins."""

from __future__ import annotations

import os

from ckpt.__main__ import with_system_programs


def test_cron_s_path_is_enough() -> None:
    assert with_system_programs("/usr/bin:/bin") == "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def test_a_path_that_has_it_all_stays() -> None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert with_system_programs(path) == path


def test_without_a_path_there_is_the_system_s() -> None:
    assert with_system_programs("").startswith(os.defpath + ":")
