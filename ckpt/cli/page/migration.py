"""The page of a migration, from the object that `ckpt migrate --json` prints: moved, stayed, or only planned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt.cli import show
from ckpt.cli.page import charts
from ckpt.cli.page.charts import Bar
from ckpt.cli.page.markup import Markup, el, raw_style
from ckpt.cli.page.style import CSS

Report = Mapping[str, Any]

_OUTCOMES = {
    "moved": ("moved", "good"),
    "planned": ("only planned", ""),
    "stayed": ("stayed", "bad"),
    "unfinished": ("not finished", "bad"),
    "lost": ("lost", "bad"),
}
_AFTERWARDS = {
    "moved": "It runs at the destination; nothing of it is left at the source.",
    "planned": "It runs at the source as before; nothing was sent.",
    "stayed": "It runs at the source as before.",
    "unfinished": "It is decided that it runs at the destination, but that was not finished: `ckpt recover` goes on.",
    "lost": "It ran at the destination and was killed there, since pages of its memory are gone. Its files are there.",
}
_HERE, _THERE = "source", "destination"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever might slip into the page: a browser loads nothing and runs nothing."""


def render(report: Report) -> str:
    """The whole page. Everything in REPORT may be anybody's words; they are only ever text here."""
    title = f"{report['name']} to {report['target']}"
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", f"Migration of {title}"),
            raw_style(CSS),
        ),
        el("body", _head(report), *_sections(report)),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


def _sections(report: Report) -> Iterator[Markup]:
    band = _band(report)
    if found := report.get("forecast"):
        yield from _forecast(found)
    if report["timeline"]:
        yield _section("Phases", _legend(band), _wide(_phases(report, band)))
    if report["window"]:
        yield _section("The frozen window", *_window(report))
    if report["rounds"]:
        yield _section("Rounds over the memory", *_rounds(report))
    if points := _throughput(report["throughput"]):
        chart = charts.curve(points, band, "bytes per second over time", "MB/s")
        yield _section("Throughput", _wide(chart))
    if any(report["bytes"].values()):
        yield _section("Bytes", _bytes(report["bytes"]))
    if kinds := report["images_by_kind"]:
        what = "taken by CRIU while it stood still"
        rows = [
            el("tr", el("td", name), _number(show.size(count)), _number(f"{count:,}"))
            for name, count in kinds.items()
        ]
        yield _section("CRIU's images", _table((what, "", "bytes"), rows, right=1))
    if report["environment"]:
        yield _section("Hosts", _hosts(report["environment"]))
    if report["checks"]:
        yield _section("Compared before", _checks(report["checks"]))
    yield el(
        "section",
        el(
            "details",
            el("summary", "All of it, as ckpt migrate --json prints it"),
            el("pre", json.dumps(report, indent=1, default=str)),
        ),
    )


def _head(report: Report) -> Markup:
    word, colour = _OUTCOMES.get(report["outcome"], (report["outcome"] or "?", ""))
    about = [report["began"], f"{report['mode']} mode"]
    about += [f"{report['lane']} lane"] if report["lane"] else []
    about += [f"migration {report['id']}"]
    return el(
        "header",
        el("span", word, class_=f"badge {colour}".strip()),
        el("h1", f"{report['name']} → {report['target']}"),
        el("p", ", ".join(about), class_="soft"),
        el("p", _AFTERWARDS.get(report["outcome"], "")),
        el("p", f"Not warm: {report['mode_why']}") if report["mode_why"] else None,
        _fault(report),
        _tiles(report),
    )


def _fault(report: Report) -> Markup | None:
    if report["outcome"] not in ("stayed", "unfinished", "lost"):
        return None
    here = [one["what"] for one in report["timeline"] if one["host"] == _HERE]
    last = here[-1] if here else "connect"
    return el(
        "div",
        el("p", el("b", report["why"])),
        el("p", report["hint"]) if report["hint"] else None,
        [el("p", f"{one['what']}: {one['why']}") for one in report["findings"][1:]],
        el("p", f"Last phase: {last}. State of the exchange: {report['state'] or 'none'}.",
           class_="soft"),
        class_="fault",
    )  # fmt: skip


def _tiles(report: Report) -> Markup:
    tiles = []
    if report["outcome"] == "moved":
        exact = report["clock_error_ms"]
        tiles.append((_ms(report["downtime_ms"]), f"stood still (± {exact:.1f} ms)"))
    tiles.append((_ms(report["total_ms"]), "took in all"))
    sent = report["bytes"]["total"]
    if sent:
        tiles.append((show.size(sent), "sent"))
    if report["rounds"]:
        tiles.append((str(len(report["rounds"])), "rounds over the memory"))
        tiles.append(
            (show.size(report["bytes"]["memory_frozen"]), "of memory in the frozen window")
        )
    return el(
        "div",
        [el("div", el("b", big), el("span", small), class_="tile") for big, small in tiles],
        class_="tiles",
    )


# ---- time


def _band(report: Report) -> tuple[float, float] | None:
    """The frozen window, in ms since the beginning."""
    if not report["window"]:
        return None
    begin = next(
        (one["at_ms"] for one in report["moments"] if one["what"] == report["window"][0]["what"]),
        0.0,
    )
    length = report["downtime_ms"] or report["window"][-1]["at_ms"]
    return begin, begin + length


def _legend(band: tuple[float, float] | None) -> Markup:
    return el(
        "p",
        el("i", class_="source"), "source",
        el("i", class_="destination"), "destination",
        [el("i", class_="frozen"), "nothing runs"] if band else None,
        class_="key soft",
    )  # fmt: skip


def _phases(report: Report, band: tuple[float, float] | None) -> Markup:
    bars = [
        Bar(one["what"], one["begin_ms"], one["end_ms"], one["host"],
            _ms(one["end_ms"] - one["begin_ms"]))
        for one in report["timeline"]
    ]  # fmt: skip
    return charts.spans(bars, band, "phases of both hosts over time")


def _window(report: Report) -> Iterator[Markup]:
    moments: Sequence[Mapping[str, Any]] = report["window"]
    downtime = report["downtime_ms"]
    # What came after the tasks ran again is not part of it.
    moments = [one for one in moments if not downtime or one["at_ms"] < downtime + 0.1]
    yield el(
        "p",
        "From just before CRIU is let go to freeze the first task, to when all tasks run at the destination."
        if downtime
        else "From just before CRIU is let go to freeze the first task; it was given up.",
        class_="soft",
    )
    bars = [
        Bar(one["what"], before["at_ms"] if before else 0.0, one["at_ms"], one["host"],
            f"at {one['at_ms']:.1f} ms")
        for before, one in zip([None, *moments], moments, strict=False)
    ][1:]  # fmt: skip
    if bars:
        yield _wide(charts.spans([_short(bar) for bar in bars], None, "the frozen window"))
    rows = []
    before = 0.0
    for one in moments:
        rows.append(
            el("tr", el("td", one["what"]), el("td", one["host"]),
               _number(f"{one['at_ms']:.2f}"), _number(f"{one['at_ms'] - before:.2f}"),
               class_=one["host"])
        )  # fmt: skip
        before = one["at_ms"]
    yield _table(("", "at the", "ms since the freeze", "ms since the row above"), rows, right=2)


def _short(bar: Bar) -> Bar:
    label = bar.label if len(bar.label) <= 30 else bar.label[:29] + "…"
    return Bar(label, bar.begin, bar.end, bar.kind, bar.note)


# ---- bytes


def _rounds(report: Report) -> Iterator[Markup]:
    rounds = report["rounds"]
    yield _wide(
        charts.bars(
            [
                (_round_name(n, rounds), one["bytes"],
                 f"{show.size(one['bytes'])} in {_ms(one['ms'])}")
                for n, one in enumerate(rounds)
            ],
            "bytes of memory in each round",
        )
    )  # fmt: skip
    rows = [
        el(
            "tr",
            el("td", _round_name(n, rounds)),
            _number(show.size(one["bytes"])),
            _number(show.size(one["sent"])),
            _number(_ms(one["ms"])),
            _number(f"{show.size(one['rate'])}/s"),
            _number(f"{show.size(one['dirty_rate'])}/s" if one["dirty_rate"] else "-"),
        )
        for n, one in enumerate(rounds)
    ]
    yield _table(
        ("", "memory", "on the lane", "took", "throughput", "written meanwhile"), rows, right=1
    )
    why = report["rounds_why"]
    yield el("p", f"Then it was frozen: {why}." if why else "The rounds did not come to their end.")
    yield el("p", f"Written pages were found by {report['tracker']}.", class_="soft")


def _round_name(number: int, rounds: Sequence[object]) -> str:
    return "the rest" if 0 < number == len(rounds) - 1 else f"round {number + 1}"


def _throughput(samples: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """MB/s between samples that are some 1/400 of the time apart, so that noise doesn't hide the course."""
    if len(samples) < 3 or not samples[-1][1]:
        return []
    gap = max((samples[-1][0] - samples[0][0]) / 400, 40.0)
    found: list[tuple[float, float]] = []
    at, sent = samples[0]
    for now, total in samples[1:]:
        if now - at >= gap:
            found.append(((at + now) / 2, (total - sent) / (now - at) / 1e3))
            at, sent = now, total
    return found if len(found) > 1 else []


def _bytes(counts: Mapping[str, int]) -> Markup:
    names = {
        "memory": "memory, on a lane of its own",
        "memory_frozen": "of it in the frozen window (before it is packed)",
        "images": "CRIU's images and the last file changes",
        "files": "files",
        "layers": "layers that were missing there",
        "total": "in all, on the lanes",
    }
    rows = [
        el("tr", el("td", names.get(name, name)), _number(show.size(count)), _number(f"{count:,}"))
        for name in (*names, *(set(counts) - set(names)))
        if (count := counts.get(name, 0))
    ]
    return _table(("", "", "bytes"), rows, right=1)


# ---- the rest


def _hosts(environment: Mapping[str, Mapping[str, str]]) -> Markup:
    here, there = environment.get(_HERE, {}), environment.get(_THERE, {})
    rows = [
        el("tr", el("td", name), el("td", here.get(name, "-")), el("td", there.get(name, "-")))
        for name in dict.fromkeys([*here, *there])
    ]
    return _table(("", _HERE, _THERE), rows)


def _checks(checks: Sequence[Mapping[str, str]]) -> Markup:
    rows = [
        el("tr", el("td", one["what"]), el("td", one["here"]), el("td", one["there"]))
        for one in checks
    ]
    return _table(("", "here", "there"), rows)


def _forecast(found: Mapping[str, Any]) -> Iterator[Markup]:
    rows = []
    for mode in found["modes"]:
        if mode["possible"]:
            cells: tuple[Markup, ...] = (
                _number(len(mode["rounds"]) or "-"), _number(show.size(mode["bytes"]["memory"])),
                _number(show.size(mode["bytes"]["frozen"])), _number(_ms(mode["downtime_ms"])),
                _number(_ms(mode["follows_ms"]) if mode["follows_ms"] else "-"),
                _number(_ms(mode["total_ms"])), el("td", mode["why"]),
            )  # fmt: skip
        else:
            cells = (*[_number("-")] * 6, el("td", f"not possible: {mode['why']}"))
        rows.append(el("tr", el("td", _mode_name(mode)), cells))
    heads = ("mode", "rounds", "memory", "frozen", "stands still", "follows", "takes", "")
    yield _section(
        "What was expected",
        _table(heads, rows, right=1),
        el("p", f"From: {found['basis']}.", class_="soft"),
    )
    points = [
        (one["seconds"] * 1e3, one["bytes"] / (1 << 20)) for one in found["observed"]["writing"]
    ]
    if len(points) > 1:
        chart = charts.curve([(0.0, 0.0), *points], None, "memory written by time", "MiB")
        yield _section("Memory that is written within a time", _wide(chart))
    for mode in found["modes"]:
        if mode["window"]:
            rows = [
                el("tr", el("td", part["what"]),
                   _number(show.size(part["bytes"]) if part["bytes"] else ""),
                   _number(f"{part['ms']:.1f} ms"))
                for part in mode["window"]
            ]  # fmt: skip
            yield _section(
                f"While it stands still ({_mode_name(mode)}, expected)",
                _table(("", "", ""), rows, right=1),
            )


def _mode_name(mode: Mapping[str, Any]) -> str:
    return f"{mode['mode']} --pre-copy" if mode["pre_copy"] else str(mode["mode"])


def _section(title: str, *children: object) -> Markup:
    return el("section", el("h2", title), *children)


def _wide(child: Markup) -> Markup:
    return el("div", child, class_="wide")


def _table(heads: Sequence[str], rows: Sequence[Markup], *, right: int = 99) -> Markup:
    """RIGHT: from this column on numbers."""
    cells = [
        el("th", head, class_="n" if n >= right and head else None) for n, head in enumerate(heads)
    ]
    return _wide(el("table", el("thead", el("tr", cells)), el("tbody", list(rows))))


def _number(text: object) -> Markup:
    return el("td", str(text), class_="n")


def _ms(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
