"""What CRIU's log means. The lines are CRIU 4.2.1's own, recorded from failures that were provoked, but for those
marked "source": these need another kernel or processor, and are what CRIU's source prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.criu.failures import CriuFault, translate

START = """\
(00.000124) Version: 4.2.1 (gitid 0)
(00.000129) Running on vm Linux 6.18.44 #1 SMP x86_64
(00.021101) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
"""
END = """\
(00.114182) uns: daemon stopped
(00.114732) Error (criu/cr-restore.c:2331): Restoring FAILED.
(00.115501) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: Input/output error
"""

# What CRIU says → words of the cause and of the remedy.
RECORDED = {
    "(00.037793) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket": (
        "io_uring",
        "UV_USE_IO_URING",
    ),
    "(00.073108) Error (criu/files-reg.c:1790): Can't lookup mount=29 for fd=4 path=/dev/pts/0": (
        "a terminal whose other end is outside",
        "ckpt run -t",
    ),
    "(00.056601) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=4 path=/srv/t.sh": (
        "a file from outside the container: /srv/t.sh, descriptor 4",
        "inherited",
    ),
    "(00.119242) Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.": (
        "a Unix socket to a process outside",
        "volume",
    ),
    "(00.037654) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/big of 73400320 size, increase limit": (
        "too large to carry: /tmp/big, 73400320 bytes",
        "64 MiB",
    ),
    "(00.250531)      2: Error (criu/files-reg.c:2175): File vol/f has bad size 11 (expect 6)": (
        "vol/f changed since the dump: it has 11 bytes instead of 6",
        "volume",
    ),
    "(00.085832)      2: Error (criu/files-reg.c:2267): Can't open file vol/f: No such file or directory": (
        "missing: vol/f",
        "volume",
    ),
    "(00.112367)      2: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 10): Address already in use": (
        "address or port of the container is in use",
        "--network bridge",
    ),
    "(00.051877) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted": (
        "CAP_SYS_RESOURCE",
        "user namespace",
    ),
    "(00.043549) Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)": (
        "socket that CRIU cannot dump (address family 40)",
        "",
    ),
    "(00.053697) Error (compel/src/lib/infect.c:262): Unseizable non-zombie 30597 found, state S, err -1/10": (
        "traced by a debugger",
        "strace",
    ),
}
FROM_SOURCE = {
    "(00.010000) Error (criu/vdso.c:401): vdso: Unexpected rt vDSO area bounds": (
        "too old for this kernel",
        "ckpt doctor --fix",
    ),
    "(00.010000)      1: Error (criu/cr-restore.c:1490): Can't fork for 17: File exists": (
        "process id 17 is in use",
        "",
    ),
    "(00.010000)      1: Error (criu/cr-restore.c:1539): Pid 21 do not match expected 17": (
        "process id 21 is in use",
        "",
    ),
    "(00.010000) Error (criu/arch/x86/cpu.c:223): cpu: CPU instruction capabilities do not match run time": (
        "this host's CPU lacks features",
        "equal or newer CPU",
    ),
    "(00.010000) Error (criu/arch/x86/cpu.c:247): cpu: FPU feature required by image (avx512f) is not supported": (
        "this host's CPU lacks features",
        "",
    ),
    "(00.010000)      2: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket: Cannot assign requested address": (
        "an address of the container is not there",
        "together with its address",
    ),
    "(00.010000) Error (criu/sockets.c:216): sockets: Diag module missing (-2)": (
        "this kernel lacks a feature",
        "ckpt doctor",
    ),
    "(00.010000) Error (criu/cr-check.c:1225): UFFD is not supported": (
        "this kernel lacks a feature",
        "ckpt doctor",
    ),
    "(00.010000)      2: Error (criu/files-reg.c:2294): File bin/app has bad mode 0100644 (expect 0100755)": (
        "bin/app changed since the dump: it has another mode",
        "volume",
    ),
    "(00.010000) Error (criu/tty.c:1830): tty: Found dangling tty with sid 9 pgid 9 (pts) on peer fd 0.": (
        "a terminal whose other end is outside",
        "",
    ),
    "(00.010000) Error (criu/sk-unix.c:881): unix: Can't dump half of stream unix connection.": (
        "a Unix socket to a process outside",
        "",
    ),
    "(00.010000) Error (criu/cr-dump.c:1808): Timeout reached. Try to interrupt: 0": (
        "could not be stopped in time",
        "try again",
    ),
    "(00.010000) Error (criu/seize.c:635): Unable to freeze cgroup /x (100 x 100ms attempts)": (
        "could not be stopped in time",
        "",
    ),
    "(00.010000) Error (criu/cr-dump.c:1681): A session leader of 40(9) is outside of its pid namespace": (
        "a session that was begun outside",
        "ckpt exec",
    ),
    "(00.010000) Error (criu/mount.c:4048): Nested mount namespaces are not supported yet": (
        "a mount namespace of its own",
        "",
    ),
    "(00.010000) Error (criu/image.c:500): Can't write image: No space left on device": (
        "the disk or a tmpfs is full",
        "free some space",
    ),
}


def fault_of(tmp_path: Path, text: str, status: int | None = 1) -> CriuFault:
    log = tmp_path / "criu.log"
    log.write_text(text)
    return translate(log, doing="dumping", target="container x", status=status)


@pytest.mark.parametrize("line", [*RECORDED, *FROM_SOURCE])
def test_the_cause_is_named_with_its_remedy(tmp_path: Path, line: str) -> None:
    cause, remedy = {**RECORDED, **FROM_SOURCE}[line]
    fault = fault_of(tmp_path, f"{START}(00.03) before\n{line}\n(00.2) after\n{END}")
    assert cause in fault.why
    assert remedy in fault.hint
    assert line in fault.lines
    assert fault.lines[0] != line
    assert fault.log == str(tmp_path / "criu.log")
    assert str(fault).count("\n") == 0


def test_an_unknown_error_is_quoted(tmp_path: Path) -> None:
    line = "(00.112)      7: Error (criu/new.c:12): The moon is in the wrong phase"
    fault = fault_of(tmp_path, f"{START}{line}\n{END}")
    assert fault.why == "CRIU gave up: (criu/new.c:12): The moon is in the wrong phase"
    assert line in fault.lines


def test_the_last_words_are_quoted_only_if_there_is_nothing_else(tmp_path: Path) -> None:
    assert "Restoring FAILED" in fault_of(tmp_path, START + END).why


def test_an_echo_that_overtook_its_cause_is_not_taken_for_it(tmp_path: Path) -> None:
    line = "(00.112)      7: Error (criu/new.c:12): The moon is in the wrong phase"
    echo = "(00.111)      1: Error (criu/cr-restore.c:1265): 2 exited, status=1"
    assert "moon" in fault_of(tmp_path, f"{START}{echo}\n{line}\n{END}").why


def test_harmless_errors_alone_are_no_cause(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, START, status=-9)
    assert fault.why == "CRIU was killed"
    assert fault.lines == ()


def test_a_warning_is_no_error(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, START + "(00.1) Warn  (x.c:1): No space left on device\n")
    assert fault.why == "CRIU ended with 1"


def test_a_log_that_is_missing(tmp_path: Path) -> None:
    fault = translate(tmp_path / "none", doing="dumping", target="container x", status=1)
    assert fault.why == "CRIU ended with 1"


def test_names_from_inside_a_container_cannot_steer_the_terminal(tmp_path: Path) -> None:
    line = "(00.1) Error (x.c:1): Can't dump ghost file /tmp/\x1b[2J\x07{0} of 99999999 size"
    fault = fault_of(tmp_path, START + line + "\n")
    assert all(char.isprintable() for text in fault.lines for char in text)
    assert all(char.isprintable() for char in str(fault))


def test_a_path_with_braces_is_only_a_path(tmp_path: Path) -> None:
    line = "(00.1) Error (x.c:1): Can't dump ghost file /tmp/{1}{x} of 99999999 size"
    assert "/tmp/{1}{x}, 99999999 bytes" in fault_of(tmp_path, START + line + "\n").why
