"""A sysctl shared by several processes is put back by the last, even if the others died."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import RuntimeFault
from runtime.pager.privilege import allowed, recover

REPO = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from runtime.pager.privilege import allowed
with allowed(ledger=Path(sys.argv[2]), sysctl=Path(sys.argv[3])):
    print("in", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("0\n")
    return tmp_path / "ledger", sysctl


def holder(ledger: Path, sysctl: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, REPO, ledger, sysctl],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_the_last_one_out_puts_it_back(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    other = holder(ledger, sysctl)
    with allowed(ledger=ledger, sysctl=sysctl):
        assert sysctl.read_text() == "1"
        with allowed(ledger=ledger, sysctl=sysctl):
            pass
        other.communicate("\n")
        assert sysctl.read_text() == "1"
    assert sysctl.read_text() == "0"
    assert not ledger.exists()


def test_one_that_died_holds_nothing(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    other = holder(ledger, sysctl)
    other.kill()
    other.communicate()
    assert sysctl.read_text() == "1"
    with allowed(ledger=ledger, sysctl=sysctl):
        assert sysctl.read_text() == "1"
    assert sysctl.read_text() == "0"


def test_recovery_puts_back_what_dead_ones_left(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    assert not recover(ledger=ledger, sysctl=sysctl)
    other = holder(ledger, sysctl)
    assert not recover(ledger=ledger, sysctl=sysctl)
    assert sysctl.read_text() == "1"
    other.kill()
    other.communicate()
    assert recover(ledger=ledger, sysctl=sysctl)
    assert sysctl.read_text() == "0" and not ledger.exists()


def test_a_value_that_allows_it_anyway_stays(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    sysctl.write_text("1\n")
    with allowed(ledger=ledger, sysctl=sysctl):
        pass
    assert sysctl.read_text().strip() == "1"


def test_a_reused_process_id_is_somebody_else(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    ledger.write_text(json.dumps({"value": "0", "holders": ["1:12345"]}))
    sysctl.write_text("1")
    assert recover(ledger=ledger, sysctl=sysctl)
    assert sysctl.read_text() == "0"


def test_a_ledger_written_by_halves_is_no_obstacle(paths: tuple[Path, Path]) -> None:
    ledger, sysctl = paths
    ledger.write_text('{"value": "0", "hold')
    with allowed(ledger=ledger, sysctl=sysctl):
        assert sysctl.read_text() == "1"
    assert sysctl.read_text() == "0"


def test_a_sysctl_that_cannot_be_set_is_an_error_and_holds_nothing(
    paths: tuple[Path, Path],
) -> None:
    ledger, sysctl = paths
    with pytest.raises(RuntimeFault), allowed(ledger=ledger, sysctl=sysctl.parent / "none"):
        pass
    assert not ledger.exists() or json.loads(ledger.read_text())["holders"] == []
