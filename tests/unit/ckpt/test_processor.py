"""Which differences between two processors a program can notice."""

from __future__ import annotations

import pytest

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
