"""One clean unwinding: tried with real signals to a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
HEAD = """
import os, signal, sys, time
from ckpt.ops import interrupt
interrupt.install()
me = os.getpid()
"""


def run(body: str, **options: object) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    return done.returncode, (done.stdout + done.stderr).split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds(number: int) -> None:
    code, said = run(f"""
try:
    os.kill(me, {int(number)}); time.sleep(10)
except interrupt.Interrupted as error:
    print("unwound", error.number)
""")
    assert (code, said) == (0, [f"unwound {int(number)}"])


def test_a_second_signal_does_not_tear_the_unwinding_apart() -> None:
    code, said = run("""
try:
    try:
        os.kill(me, signal.SIGINT); time.sleep(10)
    finally:
        os.kill(me, signal.SIGINT); os.kill(me, signal.SIGTERM)
        print("cleaned up")
except interrupt.Interrupted as error:
    print("once", error.number)
""")
    assert (code, said) == (0, ["cleaned up", "once 2"])


def test_a_shield_lets_a_signal_wait_for_the_end_of_the_block() -> None:
    code, said = run("""
try:
    with interrupt.shielded():
        os.kill(me, signal.SIGTERM)
        with interrupt.shielded():
            print("inner")
        print("outer")
    print("never")
except interrupt.Interrupted as error:
    print("then", error.number)
""")
    assert (code, said) == (0, ["inner", "outer", "then 15"])


def test_a_failure_inside_a_shield_comes_first() -> None:
    code, said = run("""
try:
    with interrupt.shielded():
        os.kill(me, signal.SIGTERM)
        raise ValueError("x")
except ValueError:
    print("the failure")
""")
    assert (code, said) == (0, ["the failure"])


def test_an_ignored_signal_stays_ignored() -> None:
    code, said = run(
        "os.kill(me, signal.SIGHUP); print('alive')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (code, said) == (0, ["alive"])
