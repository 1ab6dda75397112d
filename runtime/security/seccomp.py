"""A spec's `linux.seccomp` compiled to a filter program (OCI config-linux, "Seccomp").

Compiling happens in the CLI process with libseccomp; what goes to the container's first stage is
bytes (an array of struct sock_filter), which it hands to seccomp(2) without knowing what is in it.

What can go wrong is a filter that is looser than its author meant. So nothing is skipped silently:
names that Linux never had are refused, as are actions, operators and flags that aren't known. A
name that is too new for the libseccomp in use is left out, and reported, where leaving it out makes
the filter stricter (it would have been allowed), and refused otherwise.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import BadInput, SystemFault, Unsupported

_BASE_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_NOT_SUPPORTED = {
    "SCMP_ACT_NOTIFY": "no agent outside the container answers for it after a restore",
    "SCMP_ACT_TRACE": "no tracer is attached to a container",
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# Of seccomp(2). TSYNC says "all threads": the stage that loads the filter has only one.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
}
_LE, _64 = 0x40000000, 0x80000000
_ARCHITECTURES = {
    "SCMP_ARCH_X86": 3 | _LE,
    "SCMP_ARCH_X86_64": 62 | _64 | _LE,
    "SCMP_ARCH_X32": 62 | _LE,
    "SCMP_ARCH_ARM": 40 | _LE,
    "SCMP_ARCH_AARCH64": 183 | _64 | _LE,
}
# Of other machines: a profile that serves several lists them, and no program here can be of them.
_FOREIGN_NAMES = """
MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC PARISC64
RISCV64 LOONGARCH64 M68K SH SHEB
"""
_FOREIGN = frozenset(f"SCMP_ARCH_{name}" for name in _FOREIGN_NAMES.split())
# System calls of Linux 5.18 and later: an older libseccomp doesn't know their names, though they
# are no mistake.
_YOUNG_NAMES = """
cachestat fchmodat2 file_getattr file_setattr futex_requeue futex_wait futex_wake getxattrat
listmount listns listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr map_shadow_stack
mseal open_tree_attr removexattrat riscv_hwprobe rseq_slice_yield set_mempolicy_home_node
setxattrat statmount uprobe uretprobe
"""
_YOUNG = frozenset(_YOUNG_NAMES.split())
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_DOING = "reading the spec's"


@dataclass(frozen=True, slots=True)
class Filter:
    """`program`: 8-byte instructions for seccomp(2), loaded with `flags`.

    `notes`: what had to be left out of it.
    """

    program: bytes
    flags: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Comparison:
    index: int
    operator: int
    value: int
    value_two: int


@dataclass(frozen=True, slots=True)
class _Rule:
    names: tuple[str, ...]
    action: int
    comparisons: tuple[_Comparison, ...]


@dataclass(frozen=True, slots=True)
class _Profile:
    default: int
    architectures: tuple[str, ...]
    flags: int
    rules: tuple[_Rule, ...]


def compile_profile(spec: Mapping[str, Any]) -> Filter:
    """Compile `linux.seccomp`. Raises BadInput, Unsupported, SystemFault (libseccomp missing)."""
    profile = _read(spec)
    library = _library()
    for rule in profile.rules:
        if rule.action != profile.default:
            _check_names(library, rule, profile.default)
    context = library.SyscallFilter(profile.default)
    # A tree over the numbers instead of a list: ten comparisons for a call instead of hundreds.
    context.set_attr(library.Attr.CTL_OPTIMIZE, 2)
    _add_architectures(library, context, profile)
    notes: list[str] = []
    for rule in profile.rules:
        # The same answer as the default: libseccomp refuses such a rule, it changes nothing.
        if rule.action != profile.default:
            for name in rule.names:
                notes += _add(library, context, rule, name)
    program = _export(context)
    if len(program) // 8 > _MOST_INSTRUCTIONS:
        why = f"it comes to {len(program) // 8} instructions, the kernel takes {_MOST_INSTRUCTIONS}"
        raise _bad("", why)
    return Filter(program, profile.flags, tuple(notes))


# ---------------------------------------------------------------- reading the spec


def _bad(where: str, why: str, hint: str = "") -> BadInput:
    target = f"linux.seccomp.{where}".rstrip(".")
    return BadInput(doing=_DOING, target=target, why=why, hint=hint)


def _unsupported(where: str, why: str) -> Unsupported:
    return Unsupported(doing=_DOING, target=f"linux.seccomp.{where}", why=why)


def _only(item: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise _bad(where, "has to be an object")
    unknown = sorted(set(item) - known)
    if unknown:
        hint = ""
        if unknown[0] in ("includes", "excludes", "archMap", "comment", "minKernel", "name"):
            hint = "this is an engine's own form; the OCI form lists plain rules"
        raise _bad(f"{where}.{unknown[0]}".lstrip("."), "is not a field that ckpt knows", hint)
    return item


def _read(spec: Any) -> _Profile:
    known = {"defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"}
    refused = {
        "listenerPath": "notifications need an agent outside the container",
        "listenerMetadata": "notifications need an agent outside the container",
    }
    if isinstance(spec, Mapping):
        for key, why in refused.items():
            if spec.get(key):
                raise _unsupported(key, why)
    spec = _only(spec, "", known | set(refused))
    default = _action(spec.get("defaultAction"), spec.get("defaultErrnoRet"), "defaultAction")
    flags = 0
    for flag in _names(spec.get("flags"), "flags"):
        if flag not in _FLAGS:
            raise _unsupported(f"flags.{flag}", "isn't a flag that ckpt can set")
        flags |= _FLAGS[flag]
    architectures = _names(spec.get("architectures"), "architectures")
    for name in architectures:
        if name not in _ARCHITECTURES and name not in _FOREIGN:
            raise _bad(f"architectures.{name}", "isn't an architecture that ckpt knows")
    rules = _list(spec.get("syscalls"), "syscalls")
    return _Profile(default, architectures, flags, tuple(_rule(rule) for rule in rules))


def _list(value: Any, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _bad(where, "has to be a list")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = _list(value, where)
    if not all(isinstance(each, str) for each in names):
        raise _bad(where, "has to be a list of names")
    return tuple(names)


def _action(name: Any, number: Any, where: str) -> int:
    if name in _NOT_SUPPORTED:
        raise _unsupported(f"{where} {name}", _NOT_SUPPORTED[name])
    if name not in _BASE_ACTIONS:
        raise _bad(where, f"{name!r} isn't an action that ckpt knows")
    if number is not None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 4095:
            raise _bad(where, f"errno {number!r} isn't a number from 0 to 4095")
        if name != "SCMP_ACT_ERRNO":
            raise _bad(where, f"{name} can't have an errno")
    action: int = _BASE_ACTIONS[name]
    if name == "SCMP_ACT_ERRNO":
        action |= errno.EPERM if number is None else number
    return action


def _rule(item: Any) -> _Rule:
    rule = _only(item, "syscalls", {"names", "action", "errnoRet", "args"})
    names = _names(rule.get("names"), "syscalls.names")
    if not names:
        raise _bad("syscalls.names", "has to name at least one system call")
    where = f"syscalls {names[0]}"
    args = _list(rule.get("args"), f"{where}.args")
    action = _action(rule.get("action"), rule.get("errnoRet"), where)
    return _Rule(names, action, tuple(_comparison(arg, where) for arg in args))


def _comparison(item: Any, where: str) -> _Comparison:
    arg = _only(item, f"{where}.args", {"index", "value", "valueTwo", "op"})
    index, operator = arg.get("index"), arg.get("op")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= 5:
        raise _bad(f"{where}.args.index", f"{index!r} isn't a number from 0 to 5")
    if operator not in _OPERATORS:
        raise _bad(f"{where}.args.op", f"{operator!r} isn't an operator that ckpt knows")
    values = (arg.get("value", 0), arg.get("valueTwo", 0) or 0)
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value < 2**64:
            raise _bad(f"{where}.args.value", f"{value!r} isn't a 64-bit number")
    return _Comparison(index, _OPERATORS[operator], values[0], values[1])


# ---------------------------------------------------------------- libseccomp


@functools.cache
def _library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise SystemFault(
            doing="compiling",
            target="the seccomp filter",
            why=str(error),
            hint="install libseccomp2",
        ) from error
    return pyseccomp


def _resolve(library: Any, name: str) -> int | None:
    """The number (negative where only another machine has the call), or None for no such name."""
    try:
        number: int = library.resolve_syscall(library.Arch.NATIVE, name)
    except (OSError, ValueError):
        return None
    return None if number == -1 else number


def _check_names(library: Any, rule: _Rule, default: int) -> None:
    """Refuse mistakes, and rules whose leaving out would let something pass."""
    for name in rule.names:
        if _resolve(library, name) is not None:
            continue
        if name not in _YOUNG:
            raise _bad(f"syscalls {name}", "Linux has no such system call")
        if default in (_BASE_ACTIONS["SCMP_ACT_ALLOW"], _BASE_ACTIONS["SCMP_ACT_LOG"]):
            why = "this host's libseccomp is too old to know it, so it can't be forbidden"
            raise _unsupported(f"syscalls {name}", why)


def _add_architectures(library: Any, context: Any, profile: _Profile) -> None:
    # libseccomp starts with the native one.
    native = library.system_arch()
    wanted = {_ARCHITECTURES[n] for n in profile.architectures if n in _ARCHITECTURES}
    for token in sorted(wanted - {native}):
        # Those of another machine can't be in one filter with ours, nor can a program use them.
        if _same_machine(native, token):
            context.add_arch(token)


def _same_machine(native: int, token: int) -> bool:
    x86 = {3, 62}
    arm = {40, 183}
    machines = {native & 0xFFFF, token & 0xFFFF}
    return machines <= x86 or machines <= arm


def _add(library: Any, context: Any, rule: _Rule, name: str) -> list[str]:
    number = _resolve(library, name)
    if number is None:
        return [f"{name}: left out, this host's libseccomp doesn't know it"]
    for group in _alternatives(rule.comparisons):
        arguments = [library.Arg(c.index, c.operator, c.value, c.value_two) for c in group]
        try:
            context.add_rule(rule.action, number, *arguments)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EDOM):
                continue  # there already; or not a call of this machine
            why = f"libseccomp refuses it: {error.strerror}"
            raise _bad(f"syscalls {name}", why) from error
    return []


def _alternatives(comparisons: tuple[_Comparison, ...]) -> list[tuple[_Comparison, ...]]:
    """All have to hold, unless one argument is compared twice: then any (as other runtimes do).

    libseccomp takes one comparison per argument and rule.
    """
    indices = [comparison.index for comparison in comparisons]
    if len(set(indices)) == len(indices):
        return [comparisons]
    return [(comparison,) for comparison in comparisons]


def _export(context: Any) -> bytes:
    """The program, read while it is written: a big one is larger than a pipe."""
    reader, writer = os.pipe()
    chunks: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as pipe:
            chunks.append(pipe.read())

    thread = threading.Thread(target=drain, name="seccomp-export")
    thread.start()
    try:
        with os.fdopen(writer, "wb") as pipe:
            context.export_bpf(pipe)
    except OSError as error:
        why = error.strerror or str(error)
        raise SystemFault(doing="compiling", target="the seccomp filter", why=why) from error
    finally:
        thread.join()
    return b"".join(chunks)
