"""Profiles: what compiles, what is refused by name; and what the default one says of each call."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from runtime.errors import BadInput, RuntimeFault, Unsupported
from runtime.security.capabilities import DEFAULT, NAMES
from runtime.security.default_filter import default_profile
from runtime.security.seccomp import compile_profile

ALLOW: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW"}


def with_rule(**rule: Any) -> dict[str, Any]:
    return {**ALLOW, "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO", **rule}]}


def test_a_program_is_instructions_of_eight_bytes() -> None:
    program = compile_profile(with_rule()).program
    assert program
    assert len(program) % 8 == 0


def test_the_same_profile_gives_the_same_program() -> None:
    profile = default_profile(DEFAULT)
    assert compile_profile(profile).program == compile_profile(profile).program


def test_flags() -> None:
    flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]
    assert compile_profile({**ALLOW, "flags": flags}).flags == 2


@pytest.mark.parametrize(
    ("profile", "kind", "name"),
    [
        ({}, BadInput, "defaultAction"),
        ([], BadInput, "linux.seccomp"),
        ({"defaultAction": "SCMP_ACT_SHRUG"}, BadInput, "SCMP_ACT_SHRUG"),
        ({"defaultAction": "SCMP_ACT_TRACE"}, Unsupported, "SCMP_ACT_TRACE"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, BadInput, "errno"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}, BadInput, "5000"),
        ({**ALLOW, "listenerPath": "/run/x"}, Unsupported, "listenerPath"),
        ({**ALLOW, "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, Unsupported, "NEW_LISTENER"),
        ({**ALLOW, "architectures": ["SCMP_ARCH_VAX"]}, BadInput, "SCMP_ARCH_VAX"),
        ({**ALLOW, "archMap": []}, BadInput, "archMap"),
        ({**ALLOW, "syscalls": {}}, BadInput, "syscalls"),
        ({**ALLOW, "syscalls": [5]}, BadInput, "syscalls"),
        (with_rule(names=[]), BadInput, "names"),
        (with_rule(names="swapon"), BadInput, "names"),
        (with_rule(names=["swapoon"]), BadInput, "swapoon"),
        (with_rule(action="SCMP_ACT_NOTIFY"), Unsupported, "SCMP_ACT_NOTIFY"),
        (with_rule(action=None), BadInput, "action"),
        (with_rule(includes={"caps": []}), BadInput, "includes"),
        (with_rule(args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]), BadInput, "index"),
        (with_rule(args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]), BadInput, "value"),
        (with_rule(args=[{"index": 0, "value": 1, "op": "EQ"}]), BadInput, "op"),
        (with_rule(args=[{"index": 0, "mask": 1}]), BadInput, "mask"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    profile: Any, kind: type[RuntimeFault], name: str
) -> None:
    with pytest.raises(kind) as caught:
        compile_profile(profile)
    assert name in str(caught.value)


def test_a_call_that_the_library_does_not_know_is_left_out_only_if_that_is_stricter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "runtime.security.seccomp._resolve", lambda library, name: None if name == "mseal" else 1
    )
    allow = {"names": ["mseal"], "action": "SCMP_ACT_ALLOW"}
    notes = compile_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allow]}).notes
    assert "mseal" in notes[0]
    with pytest.raises(Unsupported, match="mseal"):
        compile_profile(with_rule(names=["mseal"]))


def test_calls_of_other_machines_are_no_mistake() -> None:
    names = ["swapon", "s390_pci_mmio_read", "arm_fadvise64_64"]
    assert compile_profile(with_rule(names=names)).program


def test_one_argument_compared_twice_means_either() -> None:
    twice = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    each = {
        **ALLOW,
        "syscalls": [
            {"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "args": [arg]} for arg in twice
        ],
    }
    assert compile_profile(with_rule(args=twice)).program == compile_profile(each).program


# ---------------------------------------------------------------- the default profile


def answers(capabilities: tuple[str, ...] = DEFAULT) -> dict[str, str | int]:
    """What the default profile says to each call that it names without looking at arguments."""
    said: dict[str, str | int] = {}
    for rule in default_profile(capabilities)["syscalls"]:
        if "args" in rule:
            continue
        for name in rule["names"]:
            assert name not in said, f"{name} is answered twice"
            allowed = rule["action"] == "SCMP_ACT_ALLOW"
            said[name] = "allow" if allowed else rule["errnoRet"]
    return said


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("mount", "CAP_SYS_ADMIN"),
        ("unshare", "CAP_SYS_ADMIN"),
        ("bpf", "CAP_BPF"),
        ("perf_event_open", "CAP_PERFMON"),
        ("chroot", "CAP_SYS_CHROOT"),
        ("reboot", "CAP_SYS_BOOT"),
        ("init_module", "CAP_SYS_MODULE"),
        ("settimeofday", "CAP_SYS_TIME"),
        ("syslog", "CAP_SYSLOG"),
        ("open_by_handle_at", "CAP_DAC_READ_SEARCH"),
    ],
)
def test_some_calls_come_with_a_capability(name: str, capability: str) -> None:
    assert answers((capability,))[name] == "allow"
    assert answers(()).get(name, errno.EPERM) == errno.EPERM


@pytest.mark.parametrize("capabilities", [(), DEFAULT, NAMES], ids=["none", "default", "all"])
def test_some_calls_are_never_allowed(capabilities: tuple[str, ...]) -> None:
    said = answers(capabilities)
    never = ["kexec_load", "userfaultfd", "keyctl", "add_key", "swapon", "io_uring_setup", "clone3"]
    assert all(said[name] in (errno.EPERM, errno.ENOSYS) for name in never)


def test_what_c_libraries_need_to_start_is_allowed() -> None:
    said = answers(())
    names = "execve brk mmap mprotect openat read fstat close arch_prctl set_tid_address rseq futex"
    assert {said.get(name) for name in names.split()} == {"allow"}


@pytest.mark.parametrize("capabilities", [(), DEFAULT, NAMES], ids=["none", "default", "all"])
def test_it_compiles_for_any_capabilities(capabilities: tuple[str, ...]) -> None:
    assert compile_profile(default_profile(capabilities)).program


def test_it_compiles_names_of_the_other_machine() -> None:
    """Names that only the other one has are known to libseccomp, so a profile can be moved."""
    profile = default_profile(DEFAULT, machine="aarch64")
    assert compile_profile(profile).program
