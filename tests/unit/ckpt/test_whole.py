"""A container is left alone until its memory is whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpt.ops import whole
from runtime.errors import TimedOut
from runtime.pager.client import FETCHERS


def container(run: Path) -> SimpleNamespace:
    (run / "criu").mkdir()
    return SimpleNamespace(paths=SimpleNamespace(run=run), record=SimpleNamespace(name="web"))


def test_it_waits_until_the_pager_has_ended(tmp_path: Path) -> None:
    one = container(tmp_path)
    sign = tmp_path / "criu" / FETCHERS
    sign.touch()
    looks = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 3:
            sign.unlink()

    whole.wait_whole(one, check)  # type: ignore[arg-type]
    assert len(looks) == 3


def test_one_that_never_becomes_whole_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = container(tmp_path)
    (tmp_path / "criu" / FETCHERS).touch()
    monkeypatch.setattr(whole, "PATIENCE", 0.0)
    with pytest.raises(TimedOut, match="container web"):
        whole.wait_whole(one)  # type: ignore[arg-type]
