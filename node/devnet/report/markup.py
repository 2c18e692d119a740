"""HTML in small pieces. Text becomes HTML only through `escaped`; the rest composes HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final, NewType

from node.devnet.report.words import legible, shortened

Html = NewType("Html", str)
"""Markup in which every piece of foreign text was escaped."""

EMPTY: Final = Html("")


def escaped(text: object, limit: int = 200) -> Html:
    """Return foreign text as HTML, fit for an attribute in double quotes too."""
    return Html(html.escape(legible(text, limit), quote=True))


def joined(parts: Iterable[Html], between: Html = EMPTY) -> Html:
    return Html(between.join(parts))


def element(name: str, content: Html, **attributes: str) -> Html:
    """Return an element; attribute values are escaped, `class_` stands for `class`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value, 2_000)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{content}</{name}>")


def text(name: str, words: object, **attributes: str) -> Html:
    """Return an element that holds foreign text."""
    return element(name, escaped(words, 2_000), **attributes)


def short(value: str, limit: int = 13, *, before: str = "") -> Html:
    """Return a hash or an address shortened; the whole is its title."""
    whole = legible(value, 400)
    words = f"{before} {shortened(whole, limit)}" if before else shortened(whole, limit)
    return text("code", words, title=f"{before} {whole}" if before else whole)


def code(value: str) -> Html:
    return text("code", value)


def number(words: object) -> Html:
    """Return a cell's figure, which stands right-aligned."""
    return text("span", words, class_="n")


def word(value: object, limit: int = 40) -> Html:
    """Return a short name that is not broken over two lines."""
    return element("span", escaped(value, limit), class_="word")


def under(first: Html, second: Html) -> Html:
    """Return a cell of two lines, the second one small."""
    return joined([first, element("small", second)])


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[Html]], *, numeric: str = ""
) -> Html:
    """Return a table; the first cell of each row is its heading.

    Without any heading there is no heading row: the rows are names and values. `numeric`
    names, one letter a column, the columns that are right-aligned: ``n`` or ``-``.
    A wide one scrolls by itself and takes the keyboard's focus for that.
    """
    kinds = [numeric[i] if i < len(numeric) else "-" for i in range(len(headings))]
    classes = ['class="n"' if kind == "n" else "" for kind in kinds]
    head = joined(
        Html(f'<th scope="col" {klass}>{escaped(heading)}</th>')
        for heading, klass in zip(headings, classes, strict=True)
    )
    body = joined(
        Html(
            "<tr>"
            + "".join(
                f'<th scope="row" {klass}>{cell}</th>' if place == 0 else f"<td {klass}>{cell}</td>"
                for place, (cell, klass) in enumerate(zip(row, classes, strict=True))
            )
            + "</tr>\n"
        )
        for row in rows
    )
    whole = Html(
        f"<table><caption>{escaped(caption, 400)}</caption>"
        f"{f'<thead><tr>{head}</tr></thead>' if any(headings) else ''}\n"
        f"<tbody>\n{body}</tbody></table>"
    )
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=caption)


def folded(summary: str, content: Html, *, opened: bool, wide: bool = False) -> Html:
    """Return content behind a line that opens it; all of it is printed, across if `wide`."""
    kind, state = ' class="wide"' if wide else "", " open" if opened else ""
    return Html(
        f"<details{kind}{state}><summary>{escaped(summary, 400)}</summary>{content}</details>"
    )


def section(title: str, identifier: str, *content: Html) -> Html:
    heading = text("h2", title, id=identifier)
    return element("section", joined([heading, *content], Html("\n")), aria_labelledby=identifier)
