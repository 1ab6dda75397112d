"""What people and programs see of an error: one line, an exit code, and no traceback unless they ask for one."""

from __future__ import annotations

import errno
import json
import os
import signal

import click
import pytest
from click.testing import CliRunner

from ckpt.cli.edge import BUG, CODES, conclude, exit_code, guarded
from ckpt.ops.interrupt import Interrupted
from images import errors as images
from runtime import errors as runtime
from runtime.criu.failures import CriuFault
from transport import errors as transport

WORDS = {"doing": "dumping", "target": "container x", "why": "it broke"}


def a_command(error: BaseException) -> click.Group:
    """A command line whose only command fails with ERROR."""

    @click.group()
    @click.option("-v", "--verbose", count=True)
    def group(verbose: int) -> None: ...

    @group.command("fail")
    @click.option("--json", "as_json", is_flag=True)
    @guarded
    def fail(as_json: bool) -> None:
        raise error

    return group


def run_plain(error: BaseException) -> tuple[int, str]:
    done = CliRunner().invoke(a_command(error), ["fail"])
    assert done.stdout == ""
    return done.exit_code, done.stderr


# What a shell would end with, and so must we: the command, not ckpt, is what failed.
COMMANDS = (runtime.NotExecutable, runtime.CommandNotFound)


@pytest.mark.parametrize("kind", [kind for kind, _ in CODES])
def test_a_fault_is_one_line_and_the_code_of_its_kind(kind: type[Exception]) -> None:
    fault = kind(**WORDS)
    code, said = run_plain(fault)
    assert code == dict(CODES)[kind]
    assert said == "ckpt: dumping container x: it broke\n"


def test_every_fault_of_every_package_has_a_code() -> None:
    for module, base in (
        (runtime, runtime.RuntimeFault),
        (images, images.ImageFault),
        (transport, transport.TransportFault),
    ):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, base):
                assert 1 <= exit_code(kind(**WORDS)) < BUG or kind in COMMANDS


def test_codes_never_collide_with_those_of_signals_and_of_click() -> None:
    numbers = {code for kind, code in CODES if kind not in COMMANDS} | {BUG}
    assert all(0 < number < 125 and number != 2 for number in numbers)


def test_criu_s_own_lines_and_the_log_follow() -> None:
    fault = CriuFault(**WORDS, retry=True)
    fault.lines, fault.log = ("(00.1) Error (x.c:1): no",), "/logs/x.log"
    code, said = run_plain(fault)
    assert code == 20
    assert said.splitlines()[1:] == [
        "    (00.1) Error (x.c:1): no",
        "  the whole log: /logs/x.log",
        "  trying again makes sense",
    ]


def test_machines_get_one_json_object() -> None:
    done = CliRunner().invoke(a_command(runtime.Conflict(**WORDS, hint="wait")), ["fail", "--json"])
    assert done.exit_code == 11
    found = json.loads(done.stderr)
    assert (found["error"], found["why"], found["hint"], found["exit_code"]) == (
        "Conflict",
        "it broke",
        "wait",
        11,
    )


def test_an_unforeseen_exception_is_called_a_bug_without_a_traceback() -> None:
    code, said = run_plain(ZeroDivisionError("division\nby zero"))
    assert code == BUG
    assert said == (
        "ckpt: this is a bug in ckpt: ZeroDivisionError: division by zero (ckpt -v shows where)\n"
    )


def test_verbose_shows_where_a_bug_is() -> None:
    done = CliRunner().invoke(a_command(KeyError("x")), ["-v", "fail"])
    assert done.exit_code == BUG
    assert "Traceback" in done.stderr
    assert "in fail" in done.stderr


def test_an_unforeseen_exception_is_told_to_machines_as_well() -> None:
    done = CliRunner().invoke(a_command(KeyError("x")), ["fail", "--json"])
    found = json.loads(done.stderr)
    assert (found["bug"], found["exit_code"]) == (True, BUG)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 15), (errno.EDQUOT, 15), (errno.EACCES, 16), (errno.EPERM, 16), (errno.EIO, 1)],
)
def test_an_error_of_the_system_is_no_bug(number: int, code: int) -> None:
    found, said = run_plain(OSError(number, os.strerror(number), "/some/file"))
    assert found == code
    assert said.startswith(f"ckpt: using /some/file: {os.strerror(number)}")
    assert said.count("\n") == 1


def test_a_full_disk_behind_another_fault_shows_in_the_code() -> None:
    fault = runtime.SystemFault(**WORDS)
    fault.__cause__ = OSError(errno.ENOSPC, "full")
    assert exit_code(fault) == 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_as_the_signal_would(number: int) -> None:
    code, said = run_plain(Interrupted(number))
    assert (code, said) == (128 + number, "ckpt: interrupted\n")


def test_a_broken_pipe_inside_is_not_taken_for_a_reader_that_left() -> None:
    # Standard output of the tests has a reader: this one comes from elsewhere.
    assert conclude(BrokenPipeError(errno.EPIPE, "Broken pipe", "/run/x/ctl")) == 1


def test_click_s_own_errors_keep_their_form() -> None:
    code, said = run_plain(click.UsageError("no such thing"))
    assert code == 2
    assert "no such thing" in said
