"""The system calls that a container may make unless its spec says otherwise.

An allow list with three answers besides "allowed":

- EPERM for what exists and is forbidden here: loading modules, mounting, kexec, ... Programs know
  that answer from not being root.
- ENOSYS for what a checkpoint couldn't carry (CRIU has no way to dump an io_uring, pages of
  memfd_secret or a Landlock domain; a domain would even be lost silently), and for clone3, whose
  flags lie in memory where a filter can't look. Programs fall back to the older way.
- ENOSYS for everything else, above all what is newer than this list. EPERM there would stop
  programs that could do without (C libraries try the newest call first).

Calls that a capability guards in the kernel anyway are allowed with that capability only: the
kernel's check is against the user namespace, and its code behind the check has had its share of
holes.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterable
from typing import Any

# By subject, so that one can see what is there. libseccomp knows which exist on which machine.
_FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32
fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lchown32
lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat oldfstat oldlstat oldstat open
openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink
readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64
setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range sync_file_range2 arm_sync_file_range syncfs tee truncate truncate64 umask unlink
unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev cachestat statmount listmount
"""
_MEMORY = """
brk madvise memfd_create mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap msync munlock
munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
map_shadow_stack membarrier
"""
_PROCESSES = """
capget capset execve execveat exit exit_group fork getegid getegid32 geteuid geteuid32 getgid
getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32
getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill
pidfd_open pidfd_send_signal prctl prlimit64 seccomp set_tid_address setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32
tgkill times tkill ugetrlimit uname vfork wait4 waitid waitpid nice olduname oldolduname
"""
_SCHEDULING = """
getcpu sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
"""
_SIGNALS_AND_TIME = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep pause
restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaction
sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend time
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64
"""
_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 futex futex_time64 futex_requeue futex_wait futex_waitv futex_wake
get_robust_list io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 rseq select set_robust_list
"""
_COMMUNICATION = """
accept accept4 bind connect getpeername getsockname getsockopt ioctl ipc listen mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 recv recvfrom recvmmsg recvmmsg_time64 recvmsg
semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat
shmctl shmdt shmget shutdown socketcall socketpair
"""
_SYSTEM = """
getrandom sysinfo ptrace process_vm_readv process_vm_writev
"""
_BY_MACHINE = {
    "x86_64": "arch_prctl modify_ldt get_thread_area set_thread_area",
    "aarch64": "arm_fadvise64_64 breakpoint cacheflush set_tls get_tls",
}

# capability -> calls that come with it
_WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": "bpf fanotify_init fanotify_mark fsconfig fsmount fsopen fspick lookup_dcookie"
    " mount mount_setattr move_mount open_tree perf_event_open pivot_root quotactl quotactl_fd"
    " setdomainname sethostname setns syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
# Answered EPERM whoever asks.
_FORBIDDEN = """
_sysctl add_key create_module get_kernel_syms kexec_file_load kexec_load keyctl migrate_pages
move_pages nfsservctl query_module request_key swapoff swapon sysfs uselib userfaultfd ustat vm86
vm86old
"""
# Answered ENOSYS: a checkpoint can't carry what they make.
_NOT_DUMPABLE = """
io_uring_enter io_uring_register io_uring_setup landlock_add_rule landlock_create_ruleset
landlock_restrict_self memfd_secret
"""

# The flags of clone(2) and unshare(2) that make namespaces. CLONE_NEWTIME shares its bit with the
# exit signal of clone, so only unshare has it.
_NAMESPACES = 0x7E020000
_NAMESPACES_UNSHARE = _NAMESPACES | 0x80
# PER_LINUX, PER_LINUX32, both with UNAME26, and "tell me": what setarch and old binaries use.
# Others switch off protections (READ_IMPLIES_EXEC; ADDR_NO_RANDOMIZE, which debuggers use).
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# AF_UNSPEC, UNIX, INET, INET6, NETLINK, PACKET: those that live in a network namespace and that
# CRIU can dump. The kernel has code for forty more, most of it seldom used.
_FAMILIES = (0, 1, 2, 10, 16, 17)
_FAMILIES_END = 46  # AF_MAX

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def default_profile(
    capabilities: Iterable[str] = (), *, machine: str | None = None
) -> dict[str, Any]:
    """The default `linux.seccomp` for a process whose bounding set is `capabilities`."""
    machine = machine or platform.machine()
    held = frozenset(capabilities)
    allowed = {
        name
        for group in (
            _FILES,
            _MEMORY,
            _PROCESSES,
            _SCHEDULING,
            _SIGNALS_AND_TIME,
            _WAITING,
            _COMMUNICATION,
            _SYSTEM,
            _BY_MACHINE.get(machine, ""),
        )
        for name in group.split()
    }
    guarded: set[str] = set()
    for capability, names in _WITH_CAPABILITY.items():
        (allowed if capability in held else guarded).update(names.split())
    rules = [_rule("SCMP_ACT_ALLOW", sorted(allowed))]
    rules.append(_errno(sorted((guarded - allowed - {"unshare"}) | set(_FORBIDDEN.split()))))
    rules.append(_errno(sorted({*_NOT_DUMPABLE.split(), "clone3"}), errno.ENOSYS))
    rules += _namespace_rules(free="CAP_SYS_ADMIN" in held)
    for value in _PERSONALITIES:
        rules.append(_rule("SCMP_ACT_ALLOW", ["personality"], _arg(0, "SCMP_CMP_EQ", value)))
    rules += _socket_rules()
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(_ARCHITECTURES.get(machine, [])),
        "syscalls": rules,
    }


def _namespace_rules(*, free: bool) -> list[dict[str, Any]]:
    if free:
        return [_rule("SCMP_ACT_ALLOW", ["clone"])]
    rules: list[dict[str, Any]] = []
    for name, flags in (("clone", _NAMESPACES), ("unshare", _NAMESPACES_UNSHARE)):
        none_of_them = _arg(0, "SCMP_CMP_MASKED_EQ", flags, 0)
        rules.append(_rule("SCMP_ACT_ALLOW", [name], none_of_them))
        for bit in (1 << shift for shift in range(32) if flags & 1 << shift):
            rules.append(_errno([name], errno.EPERM, _arg(0, "SCMP_CMP_MASKED_EQ", bit, bit)))
    return rules


def _socket_rules() -> list[dict[str, Any]]:
    """By the low 32 bits, as the kernel reads it: 2**32 + AF_VSOCK is AF_VSOCK for it."""
    rules: list[dict[str, Any]] = []
    for family in range(_FAMILIES_END):
        is_it = _arg(0, "SCMP_CMP_MASKED_EQ", 0xFFFFFFFF, family)
        if family in _FAMILIES:
            rules.append(_rule("SCMP_ACT_ALLOW", ["socket"], is_it))
        else:
            rules.append(_errno(["socket"], errno.EAFNOSUPPORT, is_it))
    return rules


def _rule(action: str, names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    if args:
        rule["args"] = list(args)
    return rule


def _errno(names: list[str], number: int = errno.EPERM, *args: dict[str, Any]) -> dict[str, Any]:
    return _rule("SCMP_ACT_ERRNO", names, *args) | {"errnoRet": number}


def _arg(index: int, operator: str, value: int, value_two: int = 0) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": operator}
    if value_two or operator == "SCMP_CMP_MASKED_EQ":
        argument["valueTwo"] = value_two
    return argument
