"""HTML and SVG elements. Every text and every attribute is escaped here, once: names of containers, error texts and
what another host says of itself are strangers' words.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is markup already: made by `el`, and by nothing else."""

    __slots__ = ()


def el(tag: str, /, *children: object, **attributes: object) -> Markup:
    """An element. CHILDREN: texts, elements, or sequences of them; None is left out. Attributes: class_ is class, and
    stroke_width is stroke-width; None is left out."""
    found = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_plain(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{found}>")
    return Markup(f"<{tag}{found}>{_all(children)}</{tag}>")


_VOID = frozenset(("meta", "br"))


def _all(children: object) -> str:
    if children is None:
        return ""
    if isinstance(children, Markup):
        return str(children)
    if isinstance(children, str):
        return html.escape(_plain(children), quote=False)
    if isinstance(children, Iterable):
        return "".join(map(_all, children))
    return html.escape(_plain(children), quote=False)


def _plain(value: object) -> str:
    """As text that a page may hold: no control characters, no halves of surrogate pairs."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.encode("utf-8", "replace").decode()
    return "".join(
        c if c in "\n\t" or c.isprintable() or c == "\xa0" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def raw_style(css: str) -> Markup:
    """Our own style sheet, whose text no browser unescapes."""
    assert "<" not in css
    return Markup(f"<style>{css}</style>")
