"""A migration's page in a real browser without any network: it is drawn, light and dark, and printed."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import pytest

from ckpt.cli.page.migration import render
from tests import needs
from tests.unit.ckpt.report_sample import moved, stayed

pytestmark = [needs.root, needs.browser]

DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"


@pytest.fixture(params=["moved", "stayed"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(render(moved() if request.param == "moved" else stayed()))
    return path


def browse(page: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    argv = needs.browser_argv(str(page.parent / "profile"), *words, f"file://{page}")
    return subprocess.run(argv, check=True, capture_output=True, timeout=60)


def first_pixel(path: Path) -> tuple[int, ...]:
    """Of a PNG (RFC 2083): whatever its row's filter is, the first pixel of the first row stands as it is."""
    data = path.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += 12 + size
    return tuple(zlib.decompress(packed)[1:4])


def test_a_browser_draws_and_prints_the_page_and_runs_nothing_of_it(page: Path) -> None:
    shots = {}
    for name, scheme in (("light", LIGHT), ("dark", DARK)):
        shot = page.with_name(f"{name}.png")
        browse(page, scheme, "--window-size=1000,2400", f"--screenshot={shot}")
        shots[name] = first_pixel(shot)
    assert min(shots["light"]) > 240
    assert max(shots["dark"]) < 40
    pdf = page.with_name("page.pdf")
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert 1 <= pdf.read_bytes().count(b"/Type /Page\n") <= 6
    dom = browse(page, "--dump-dom").stdout.decode()
    # Would anything of the hostile texts have become an element, or run, the tree were another.
    assert "<script" not in dom and "<img" not in dom
    assert dom.count("<svg") >= 3
    assert "256.0 MiB" in dom
