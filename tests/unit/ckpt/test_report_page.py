"""The page of a migration: nothing outside of it, everybody's words as text, and the numbers of the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from ckpt.cli.page import charts
from ckpt.cli.page.file import PageFile
from ckpt.cli.page.markup import el
from ckpt.cli.page.migration import render
from runtime.errors import RuntimeFault
from tests.unit.ckpt.report_sample import HOSTILE, moved, stayed

_VOID = {"meta", "br"}
_FETCHES = {
    "src",
    "href",
    "action",
    "data",
    "poster",
    "srcset",
    "background",
    "formaction",
    "xlink:href",
}


class Page(HTMLParser):
    """What a browser would see; raises where elements aren't closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data + " "


@pytest.fixture(params=["moved", "stayed"])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return moved() if request.param == "moved" else stayed()


def test_nothing_is_fetched_and_nothing_runs(report: dict[str, Any]) -> None:
    page = Page(render(report))
    assert not {"script", "img", "iframe", "link", "object", "embed", "base", "form"} & set(
        page.tags
    )
    for name, value in page.attributes:
        assert name not in _FETCHES, (name, value)
        assert not name.startswith("on"), name
        assert name != "style"
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_words_of_strangers_are_text(report: dict[str, Any]) -> None:
    text = render(report)
    assert "<script" not in text
    assert "<img" not in text
    assert "\x00" not in text
    assert "\x1b" not in text
    text.encode()
    assert "</script><script src=//evil.example/x.js>alert(1)" in Page(text).text


def test_the_numbers_of_the_report_are_there() -> None:
    text = Page(render(moved())).text
    for number in ("97.3 ms", "1278 ms", "256.0 MiB", "417,792", "271,337,042", "512 ms", "40.0 MiB/s",
                   "0.00", "13.00", "58.00", "97.00"):  # fmt: skip
        assert number in text, number
    for word in (
        "connect",
        "restore",
        "all tasks run",
        "the rest takes 3 ms",
        "wp-async",
        "6.12.9",
    ):
        assert word in text, word


def test_a_migration_that_failed_says_why_and_where_it_runs() -> None:
    text = Page(render(stayed("No space left on device"))).text
    for words in ("No space left on device", "free some space", "runs at the source as before",
                  "it was given up", "aborted"):  # fmt: skip
        assert words in text, words
    assert "stood still (" not in text


def test_one_that_failed_before_anything_has_a_page_too() -> None:
    from ckpt.ops.report import Report

    report = Report("id", "web", "other", "warm")
    report.failed(RuntimeFault(doing="connecting", target="other", why="refused"))
    text = Page(render(report.to_dict())).text
    assert "refused" in text


def test_the_page_holds_what_json_prints() -> None:
    report = moved()
    page = render(report)
    assert json.dumps(report["rounds"][0]["sent"]) in page


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0, 1278, 0, 1200), (0, 0.85, 0, 0.8), (950, 1100, 960, 1100), (0, 3.6e6, 0, 3.5e6)],
)
def test_an_axis_has_round_numbers_within_its_ends(
    low: float, high: float, first: float, last: float
) -> None:
    found = charts.steps(low, high)
    assert found[0] == pytest.approx(first)
    assert found[-1] == pytest.approx(last)
    assert 4 <= len(found) <= 17


def test_charts_of_nothing_and_of_one_moment_are_drawn() -> None:
    Page(charts.spans([], None, "none"))
    Page(charts.spans([charts.Bar("a", 5, 5, "source", "")], (5, 5), "one"))
    Page(charts.bars([], "none"))
    Page(charts.curve([(0, 0), (0, 0)], None, "flat", "MB/s"))


def test_text_is_escaped_in_content_and_attributes() -> None:
    assert el("p", HOSTILE, title=HOSTILE).count("<") == 2
    assert el("p", [el("b", "<"), None, 3]) == "<p><b>&lt;</b>3</p>"


def test_a_place_where_no_page_can_be_written_is_known_before(tmp_path: Any) -> None:
    for path in (tmp_path / "none" / "x.html", tmp_path):
        with pytest.raises(RuntimeFault):
            PageFile(str(path))
    target = tmp_path / "x.html"
    with PageFile(str(target)):
        pass
    assert list(tmp_path.iterdir()) == []
    with PageFile(str(target)) as file:
        file.write("<p>")
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]
