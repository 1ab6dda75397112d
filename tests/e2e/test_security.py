"""The default filter and capabilities, on a real child: the forbidden fails, ordinary work goes on.

Each claim runs in a fresh Python process that takes on the credentials as the container's first
stage does, tries things, and prints what came of them.
"""

from __future__ import annotations

import base64
import errno
import json
import platform
import subprocess
import sys
from typing import Any

import pytest

from runtime.security.capabilities import NUMBERS, Capabilities
from runtime.security.default_filter import default_profile
from runtime.security.seccomp import compile_profile
from tests import needs
from tests.patience import patient

pytestmark = needs.root

# What the child runs: no import of ours but the stage's own, then the tries, then JSON.
_CHILD = """
import base64, ctypes, errno, json, os, socket, subprocess, sys, threading
job = json.loads(sys.argv[1])
from runtime import syscalls
from runtime.security.apply import apply_capabilities
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in args))
    return 0 if result >= 0 else ctypes.get_errno()
if job["no_new_privileges"]:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
else:
    syscalls.seccomp_load(base64.b64decode(job["program"]))
apply_capabilities(job["plan"], uid=job["uid"], gid=job["gid"], groups=job["groups"])
if job["no_new_privileges"] and job["program"]:
    syscalls.seccomp_load(base64.b64decode(job["program"]))
out = {}
exec(job["code"])
print(json.dumps(out))
"""


def run(
    code: str,
    *,
    capabilities: Capabilities | None = None,
    profile: dict[str, Any] | None = None,
    uid: int = 0,
    groups: tuple[int, ...] = (),
    no_new_privileges: bool = True,
) -> dict[str, Any]:
    capabilities = Capabilities.default() if capabilities is None else capabilities
    if profile is None:
        profile = default_profile(capabilities.names())
    job = {
        "program": base64.b64encode(compile_profile(profile).program).decode(),
        "plan": capabilities.plan(),
        "uid": uid,
        "gid": uid,
        "groups": groups,
        "no_new_privileges": no_new_privileges,
        "code": code,
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(job)],
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# x86-64 and aarch64 numbers
_NUMBERS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "memfd_secret": (447, 447),
    "landlock_create_ruleset": (444, 444),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "getpid": (39, 172),
    "ptrace": (101, 117),
    "personality": (135, 92),
}


def _number(name: str) -> int:
    return _NUMBERS[name][platform.machine() == "aarch64"]


def tries(**calls: tuple[int, ...]) -> str:
    return "\n".join(
        f"out[{label!r}] = call({', '.join(map(str, numbers))})" for label, numbers in calls.items()
    )


class TestDefaultFilter:
    def test_forbidden_calls_are_refused_with_eperm(self) -> None:
        names = [
            *("mount", "umount2", "init_module", "kexec_load", "bpf", "perf_event_open"),
            *("keyctl", "add_key", "request_key", "userfaultfd", "swapon", "reboot"),
            *("settimeofday", "setns", "open_by_handle_at"),
        ]
        # With all capabilities in the process, so that it's the filter that says no.
        everything = Capabilities.default(add=["ALL"])
        profile = default_profile(Capabilities.default().names())
        calls = {name: (_number(name), 0, 0, 0, 0, 0) for name in names}
        out = run(tries(**calls), capabilities=everything, profile=profile)
        assert out == dict.fromkeys(names, errno.EPERM)

    def test_what_a_checkpoint_cannot_carry_does_not_exist(self) -> None:
        names = ["io_uring_setup", "memfd_secret", "landlock_create_ruleset", "clone3"]
        calls = {name: (_number(name), 0, 0, 0) for name in names}
        out = run(tries(**calls))
        assert out == dict.fromkeys(names, errno.ENOSYS)

    def test_a_call_from_the_future_does_not_exist(self) -> None:
        assert run(tries(x=(4000,))) == {"x": errno.ENOSYS}

    @pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x10000000, 0x40000000, 0x80])
    def test_no_new_namespaces(self, flag: int) -> None:
        out = run(
            tries(flag=(_number("unshare"), flag), files=(_number("unshare"), 0x400)),
            capabilities=Capabilities.default(add=["ALL"]),
            profile=default_profile(),
        )
        assert out == {"flag": errno.EPERM, "files": 0}

    def test_namespaces_with_sys_admin(self) -> None:
        capabilities = Capabilities.default(add=["SYS_ADMIN"])
        out = run(tries(uts=(_number("unshare"), 0x4000000)), capabilities=capabilities)
        assert out == {"uts": 0}

    def test_ordinary_work_goes_on(self) -> None:
        code = """
import tempfile, time, select, mmap, signal
worker = threading.Thread(target=lambda: out.setdefault("thread", 1))
worker.start(); worker.join()
out["child"] = subprocess.check_output(["/bin/sh", "-c", "echo hi | cat"], text=True)
a, b = socket.socketpair(); a.send(b"x"); out["pair"] = b.recv(1).decode()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
out["tcp"] = client.getpeername()[0]
with tempfile.TemporaryFile() as f:
    f.write(b"abc"); f.flush(); os.fsync(f.fileno()); out["file"] = os.fstat(f.fileno()).st_size
with mmap.mmap(-1, 1 << 20) as m:
    m[0] = 1; out["map"] = m[0]
poll = select.epoll(); poll.register(b, select.EPOLLIN)
out["poll"] = len(poll.poll(0)); poll.close()
out["fork"] = os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(7), 0)[1])
out["ptrace"] = call(PTRACE, 0, 0, 0, 0)
out["random"] = len(os.getrandom(8))
for s in (a, b, server, client): s.close()
"""
        out = run(code.replace("PTRACE", str(_number("ptrace"))))
        assert out == {
            "thread": 1,
            "child": "hi\n",
            "pair": "x",
            "tcp": "127.0.0.1",
            "file": 3,
            "map": 1,
            "poll": 0,
            "fork": 7,
            "ptrace": 0,
            "random": 8,
        }

    def test_only_families_that_a_checkpoint_carries(self) -> None:
        socket_call = 41 if _number("getpid") == 39 else 198
        families = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "alg": 38, "vsock": 40}
        calls = {
            name: (socket_call, number, 3 if number == 16 else 1, 0)
            for name, number in families.items()
        }
        # The kernel reads 32 bits of the family: the filter must not be fooled by the upper ones.
        calls["vsock_in_disguise"] = (socket_call, 2**32 + 40, 1, 0)
        out = run(tries(**calls))
        refused = {name: number for name, number in out.items() if number}
        unsupported = errno.EAFNOSUPPORT
        assert refused == dict.fromkeys(("alg", "vsock", "vsock_in_disguise"), unsupported)

    def test_loads_without_privileges_if_no_new_privs_is_set(self) -> None:
        out = run(
            tries(mount=(_number("mount"), 0, 0, 0, 0, 0)) + "\nout['uid'] = os.getuid()", uid=1234
        )
        assert out == {"mount": errno.EPERM, "uid": 1234}

    def test_loads_before_dropping_privileges_without_no_new_privs(self) -> None:
        """The filter lets through what taking on credentials needs."""
        code = tries(mount=(_number("mount"), 0, 0, 0, 0, 0)) + "\nout['uid'] = os.getuid()"
        out = run(code, uid=1234, no_new_privileges=False)
        assert out == {"mount": errno.EPERM, "uid": 1234}

    @needs.userns
    def test_root_of_a_user_namespace_is_held_back_too(self) -> None:
        profile = default_profile()
        program = base64.b64encode(compile_profile(profile).program).decode()
        script = (
            "import base64, sys, ctypes\n"
            "from runtime import syscalls\n"
            "syscalls.unshare(syscalls.CLONE_NEWUSER)\n"
            "syscalls.seccomp_load(base64.b64decode(sys.argv[1]))\n"
            "try:\n    syscalls.unshare(syscalls.CLONE_NEWUTS)\n"
            "except PermissionError: print('refused')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, program], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("refused\n", "")


_STATUS = """
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    out[key] = int(status[key], 16)
out["ids"] = status["Uid"].split() + status["Gid"].split()
out["groups"] = os.getgroups()
"""
_AFTER_EXEC = """
text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
status = dict(line.split(":\\t", 1) for line in text.splitlines() if ":\\t" in line)
for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    out[key] = int(status[key], 16)
"""


def _mask(*names: str) -> int:
    return sum(1 << NUMBERS[name] for name in names)


class TestCapabilities:
    def test_root_has_the_default_set_and_nothing_more(self) -> None:
        out = run(_STATUS)
        wanted = Capabilities.default().plan()["bounding"]
        assert (out["CapPrm"], out["CapEff"], out["CapBnd"]) == (wanted, wanted, wanted)
        assert (out["CapInh"], out["CapAmb"]) == (0, 0)

    def test_root_does_not_get_more_by_exec(self) -> None:
        out = run(_AFTER_EXEC)
        wanted = Capabilities.default().plan()["bounding"]
        assert (out["CapPrm"], out["CapBnd"]) == (wanted, wanted)

    def test_a_user_loses_all_by_exec(self) -> None:
        out = run(_AFTER_EXEC, uid=1000)
        assert (out["CapPrm"], out["CapEff"]) == (0, 0)

    def test_ambient_capabilities_survive_exec_of_a_user(self) -> None:
        name = "CAP_NET_BIND_SERVICE"
        one = Capabilities.from_spec(
            {
                each: [name]
                for each in ("bounding", "effective", "permitted", "inheritable", "ambient")
            }
        )
        out = run(_AFTER_EXEC, capabilities=one, uid=1000)
        assert (out["CapPrm"], out["CapEff"], out["CapAmb"]) == (_mask(name),) * 3

    def test_ids_and_groups_are_taken_on(self) -> None:
        out = run(_STATUS, uid=1234, groups=(5, 6))
        assert out["ids"] == ["1234"] * 8
        assert sorted(out["groups"]) == [5, 6]

    def test_none_at_all(self) -> None:
        code = (
            _STATUS
            + """
try:
    os.chown("/tmp", 0, 0); out["chown"] = 0
except OSError as e:
    out["chown"] = e.errno
try:
    os.setuid(5); out["setuid"] = 0
except OSError as e:
    out["setuid"] = e.errno
"""
        )
        out = run(code, capabilities=Capabilities.from_spec(None), uid=1234)
        assert (out["CapPrm"], out["CapEff"], out["CapBnd"]) == (0, 0, 0)
        assert (out["chown"], out["setuid"]) == (errno.EPERM, errno.EPERM)


class TestUserProfile:
    def test_a_comparison_of_an_argument_decides(self) -> None:
        profile = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 77,
                    "args": [{"index": 0, "value": 0xFFFFFFFF, "op": "SCMP_CMP_NE"}],
                }
            ],
        }
        number = _number("personality")
        out = run(tries(ask=(number, 0xFFFFFFFF), set=(number, 8)), profile=profile)
        assert out == {"ask": 0, "set": 77}

    def test_kill_process_kills(self) -> None:
        profile = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_KILL_PROCESS"}],
        }
        number = _number("swapon")
        code = f"""
pid = os.fork()
if pid == 0:
    call({number}, 0, 0)
    os._exit(0)
out["status"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
        assert run(code, profile=profile) == {"status": -31}  # SIGSYS
