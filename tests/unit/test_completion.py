"""Shell completion, as `make install` writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

PROGRAM = Path(sys.executable).with_name("ckpt")


def script(shell: str) -> str:
    done = subprocess.run(
        [str(PROGRAM)],
        env={**os.environ, "_CKPT_COMPLETE": f"{shell}_source"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "registers"),
    [
        pytest.param("bash", "-F _ckpt_completion ckpt", marks=needs.tool("bash")),
        ("zsh", "#compdef ckpt"),
        ("fish", "--command ckpt"),
    ],
)
def test_there_is_a_script_for_each_shell(shell: str, registers: str) -> None:
    assert registers in script(shell)


@needs.tool("bash")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    file = tmp_path / "ckpt"
    file.write_text(script("bash"))
    ask = f"""
source {file}
complete() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ckpt_completion ckpt; }}
complete ckpt migr; echo "${{COMPREPLY[@]}}"
complete ckpt migrate --dry; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", ask],
        env={"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "CKPT_ROOT": str(tmp_path / "root")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["migrate", "--dry-run"]
    assert not (tmp_path / "root").exists()
