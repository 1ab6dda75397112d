"""setup-criu: a source for a newer suite is derived from either format of the machine's own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup-criu"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("setup_criu", str(SCRIPT))
    spec = importlib.util.spec_from_loader("setup_criu", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.dont_write_bytecode", True)
        loader.exec_module(module)
    return module


DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.example/debian
# another
Suites: bookworm bookworm-updates
Components: main contrib
Enabled: yes
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_deb822_keeps_address_and_key_and_changes_the_suite(script: ModuleType) -> None:
    derived = script.derived_source("debian.sources", DEB822, "bookworm", "testing")
    assert derived == (
        "Types: deb\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: testing\n"
        "Components: main\n"
        "Enabled: yes\n"
        "Signed-By: \n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n"
        " .\n"
        " abc\n"
        " -----END PGP PUBLIC KEY BLOCK-----\n"
        "Targets: Packages\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        DEB822.replace("Enabled: yes", "Enabled: no"),
        DEB822.replace("Types: deb deb-src", "Types: deb-src"),
        DEB822.replace("main contrib", "contrib"),
        DEB822.replace("bookworm bookworm-updates", "bookworm-updates"),
        "",
    ],
)
def test_deb822_entries_that_do_not_serve_the_release_are_passed_over(
    script: ModuleType, text: str
) -> None:
    assert script.derived_source("debian.sources", text, "bookworm", "testing") is None


@pytest.mark.parametrize(
    ("line", "derived"),
    [
        (
            "deb http://m.example/debian bookworm main non-free",
            "deb [target=Packages] http://m.example/debian testing main\n",
        ),
        (
            "deb [arch=amd64 signed-by=/etc/k.gpg] https://m.example/d bookworm main # note",
            "deb [arch=amd64 signed-by=/etc/k.gpg target=Packages] https://m.example/d testing"
            " main\n",
        ),
        ("# deb http://m.example/debian bookworm main", None),
        ("deb-src http://m.example/debian bookworm main", None),
        ("deb http://m.example/debian bookworm-updates main", None),
        ("deb http://m.example/debian bookworm contrib", None),
        ("deb cdrom:[Debian]/ bookworm main", None),
    ],
)
def test_one_line_format(script: ModuleType, line: str, derived: str | None) -> None:
    assert script.derived_source("sources.list", f"\n{line}\n", "bookworm", "testing") == derived


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version: 4.2.1\n", (4, 2, 1)),
        ("4.1.1-1+b2", (4, 1, 1)),
        ("none", ()),
        ("3.17.1", (3, 17, 1)),
    ],
)
def test_versions(script: ModuleType, text: str, version: tuple[int, ...]) -> None:
    assert script.version_of(text) == version


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo Version: 3.17.1", "version 3.17.1 is older than 4.1"),
        ("echo cannot load libfoo.so >&2; exit 127", "cannot load libfoo.so"),
    ],
)
def test_a_criu_that_cannot_be_used_is_refused_by_reason(
    script: ModuleType, tmp_path: Path, body: str, reason: str
) -> None:
    assert script.why_unusable(_program(tmp_path / "criu", body)) == reason


def test_a_failing_check_is_a_reason(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    body = 'if [ "$1" = check ]; then echo "Error (x.c:1): no"; exit 1; fi; echo Version: 4.2'
    reason = script.why_unusable(_program(tmp_path / "criu", body))
    assert reason == "Error (x.c:1): no"


def test_a_directory_that_is_not_its_own_is_not_removed(tmp_path: Path) -> None:
    prefix = tmp_path / "precious"
    prefix.mkdir()
    done = subprocess.run(
        [SCRIPT, "--remove"],
        env={**os.environ, "CKPT_CRIU_PREFIX": str(prefix)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert prefix.is_dir()
