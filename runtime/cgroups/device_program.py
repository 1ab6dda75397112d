"""A device policy as a BPF program on a v2 cgroup, which has no file for it.

The kernel calls every BPF_PROG_TYPE_CGROUP_DEVICE program on the path from the task's cgroup to
the root at each open and mknod of a device; all must return 1. Ours is straight-line code: load
the four things that it is asked about, compare them with one exception after the other, else
answer the default. It is attached with ALLOW_MULTI, as systemd does, so both have their say.

The cgroup holds the program: nothing to keep open, nothing to pin, gone with the cgroup.

Replacing goes attach-new, then detach-old: in between both hold, so that an access is at most
refused for a moment, and never allowed by neither. (bpf(2), Documentation/bpf/prog_cgroup_*.)
"""

from __future__ import annotations

import ctypes
import os
import struct

from runtime import syscalls
from runtime.cgroups.devices import ANY, DevicePolicy

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2}
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS
_LICENSE = b"GPL\0"  # what the kernel wants to read here; this program calls no helper

# Instruction codes, linux/bpf_common.h and bpf.h
_LOAD_WORD, _MOVE32, _AND32, _SHIFT_RIGHT32 = 0x61, 0xBC, 0x54, 0x74
_JUMP_EQUAL, _JUMP_NOT_EQUAL, _MOVE_CONST, _EXIT = 0x15, 0x55, 0xB7, 0x95
_R0, _SCRATCH, _TYPE, _WANTED, _MAJOR, _MINOR = range(6)


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, offset, value)


def _answer(allow: bool) -> bytes:
    return _instruction(_MOVE_CONST, _R0, value=int(allow)) + _instruction(_EXIT)


def assemble(policy: DevicePolicy) -> bytes:
    """The program for `policy`, 8 bytes per instruction; at most 4096 of them (about 500 rules)."""
    context = 1  # R1 points to struct bpf_cgroup_dev_ctx {access << 16 | type, major, minor}
    code = [
        _instruction(_LOAD_WORD, _TYPE, context, 0),
        _instruction(_AND32, _TYPE, value=0xFFFF),
        _instruction(_LOAD_WORD, _WANTED, context, 0),
        _instruction(_SHIFT_RIGHT32, _WANTED, value=16),
        _instruction(_LOAD_WORD, _MAJOR, context, 4),
        _instruction(_LOAD_WORD, _MINOR, context, 8),
    ]
    for (kind, major, minor), letters in policy.exceptions.items():
        bits = sum(_ACCESS[letter] for letter in letters)
        tests = [(_JUMP_NOT_EQUAL, _TYPE, _KIND[kind])]
        tests += [(_JUMP_NOT_EQUAL, _MAJOR, major)] if major != ANY else []
        tests += [(_JUMP_NOT_EQUAL, _MINOR, minor)] if minor != ANY else []
        # Default deny: skip unless nothing is wanted beyond `bits`. Default allow: skip unless
        # some of `bits` is wanted.
        mask = bits if policy.default_allow else 7 & ~bits
        skip = _JUMP_EQUAL if policy.default_allow else _JUMP_NOT_EQUAL
        # Jumps count instructions from the next one: over the rest of this exception.
        size = len(tests) + 3 + 2
        for index, (jump, register, value) in enumerate(tests):
            code.append(_instruction(jump, register, offset=size - index - 1, value=value))
        code.append(_instruction(_MOVE32, _SCRATCH, _WANTED))
        code.append(_instruction(_AND32, _SCRATCH, value=mask))
        code.append(_instruction(skip, _SCRATCH, offset=2, value=0))
        code.append(_answer(not policy.default_allow))
    code.append(_answer(policy.default_allow))
    return b"".join(code)


def attach(directory: str, policy: DevicePolicy) -> None:
    """Make `policy` the one of the v2 cgroup at `directory`, in place of an earlier one of ours.

    Raises OSError (EPERM without CAP_BPF or CAP_SYS_ADMIN, EINVAL without CONFIG_CGROUP_BPF).
    """
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        earlier = attached(cgroup)
        program = _load(assemble(policy))
        try:
            _attach(_PROG_ATTACH, cgroup, program, _ALLOW_MULTI)
        finally:
            os.close(program)
        for number in earlier:
            _detach(cgroup, number)
    finally:
        os.close(cgroup)


def attached(cgroup: int) -> list[int]:
    """Ids of the device programs on the v2 cgroup that the descriptor refers to."""
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    attr = struct.pack(
        "=IIIIQI36x", cgroup, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS
    )
    _, out = syscalls.bpf(_PROG_QUERY, attr)
    (count,) = struct.unpack_from("=I", out, 24)
    return list(ids[:count])


def _load(code: bytes) -> int:
    program = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(_LICENSE)
    attr = struct.pack(
        "=IIQQIIQII16sII",
        _TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(program),
        ctypes.addressof(license_),
        0,
        0,
        0,
        0,
        0,
        b"ckpt_devices",
        0,
        _ATTACH_CGROUP_DEVICE,
    )
    fd, _ = syscalls.bpf(_PROG_LOAD, attr)
    return fd


def _attach(command: int, cgroup: int, program: int, flags: int = 0) -> None:
    attr = struct.pack("=IIIII", cgroup, program, _ATTACH_CGROUP_DEVICE, flags, 0)
    syscalls.bpf(command, attr)


def _detach(cgroup: int, number: int) -> None:
    program, _ = syscalls.bpf(_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
    try:
        _attach(_PROG_DETACH, cgroup, program)
    finally:
        os.close(program)
