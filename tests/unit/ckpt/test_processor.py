"""Which differences between two hosts a container can notice: processors, files of the kernel."""

from __future__ import annotations

import pytest

from ckpt.ops.preflight import kernel_files
from ckpt.ops.processor import cpu_features, lacking, missing

HERE = ("fpu", "sse2", "avx2", "nopl", "vmx")


@pytest.mark.parametrize("one", ["avx", "avx512f", "avx512_vbmi2", "sse4_2", "xsavec", "3dnow"])
def test_instructions_that_are_absent_are_told(one):
    assert missing([*HERE, one], HERE, "x86_64") == [one]


@pytest.mark.parametrize(
    "one", ["vmx", "svm", "arat", "rep_good", "constant_tsc", "user_shstk", "ibrs", "erms", "la57"]
)
def test_what_only_a_kernel_uses_or_says_is_no_reason(one):
    ours = [flag for flag in HERE if flag != one]
    assert missing([*HERE, one], ours, "x86_64") == []


def test_more_than_there_is_no_reason_either():
    assert missing(HERE, [*HERE, "avx512f"], "x86_64") == []


def test_on_arm_every_feature_counts():
    assert missing(["fp", "sve"], ["fp"], "aarch64") == ["sve"]


def test_nothing_is_lacking_on_the_very_same_host():
    assert lacking(cpu_features()) == []


def test_files_of_the_kernel_that_are_covered_by_mounts_are_told_and_no_others():
    mountinfo = """\
655 631 0:51 / / rw,relatime - overlay overlay rw
656 655 0:52 / /proc rw,nosuid - proc proc rw
657 656 0:52 /sysrq-trigger /proc/sysrq-trigger ro,nosuid - proc proc rw
658 655 0:53 / /sys ro - sysfs sysfs ro
659 658 0:54 / /sys/fs/cgroup ro - cgroup2 cgroup rw
660 658 0:55 / /sys/firmware ro - tmpfs tmpfs ro
"""
    assert kernel_files(mountinfo) == ["/proc/sysrq-trigger", "/sys/firmware"]
    assert kernel_files("") == []
