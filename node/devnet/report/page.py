"""The report as one HTML page that needs nothing but itself.

No script, no request: the policy in its head forbids both, so that text from a hostile peer
could do nothing even if it were not escaped. Pictures are inlined; in the dark their
lightness is turned round by the style sheet.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Final

from node.devnet.report import calls
from node.devnet.report import page_tables as tables
from node.devnet.report.clearing import clearing_lines, rounds_table
from node.devnet.report.document import Report
from node.devnet.report.findings import (
    headline,
    headline_difference,
    ledger_verdict,
    paid_trades,
    warnings,
)
from node.devnet.report.markup import EMPTY, Html, element, escaped, joined, section, text
from node.devnet.report.page_style import STYLE
from node.devnet.report.plots import Picture
from node.devnet.report.style import DPI
from node.devnet.report.words import NONE, counted, duration, legible, signed

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
CSS_DPI: Final = 96
SECTIONS: Final = {
    "learning": "Learning",
    "trading": "Trading",
    "rounds": "Rounds",
    "calls": "Calls",
    "money": "Money",
    "run": "The run",
}


def page(report: Report, pictures: Mapping[str, Picture]) -> str:
    """Return the page of a report (as `as_written` gives it) with its pictures."""
    shown = {name: _figure(picture) for name, picture in pictures.items()}

    def pictured(*names: str) -> Html:
        return joined(shown[name] for name in names if name in shown)

    trading = {
        "trading": (
            tables.trading(report),
            pictured("lost", "trades", "price", "gain", "alpha"),
            tables.trades(report),
            tables.strategies(report),
            tables.honesty(report),
        )
    }
    sections = {
        "learning": (
            pictured("learning"),
            tables.arms(report),
            pictured("differences"),
            tables.differences(report),
        ),
        **(_rounds(report) if "clearing" in report else trading),
        **({"calls": (calls.tables(report),)} if "calls" in report else {}),
        "money": (
            _verdict(report),
            tables.ledger(report),
            tables.agents(report),
            pictured("gas"),
            tables.gas(report),
        ),
        "run": (
            _settings(report),
            tables.network(report),
            tables.timings(report),
            tables.cost(report),
            tables.machine(report),
            tables.settings(report),
        ),
    }
    title = f"Devnet: {legible(report['name'], 80)}"
    body = joined(
        [
            element("header", joined([text("h1", title), _summary(report)], Html("\n"))),
            _contents(sections),
            element(
                "main",
                joined(
                    (section(SECTIONS[key], key, *parts) for key, parts in sections.items()),
                    Html("\n"),
                ),
            ),
            text(
                "footer",
                "All figures are in report.json beside this page, the plots in plots/. Play-ether "
                "is the money of a development chain; it is worth nothing.",
                class_="soft",
            ),
        ],
        Html("\n"),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escaped(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _rounds(report: Report) -> dict[str, tuple[Html, ...]]:
    lines = (element("p", escaped(line, 1_000)) for line in clearing_lines(report))
    return {"rounds": (rounds_table(report), *lines)}


def _summary(report: Report) -> Html:
    return joined(
        [_warnings(report), text("p", headline(report), class_="headline"), _facts(report)]
    )


def _warnings(report: Report) -> Html:
    said = warnings(report)
    if not said:
        return EMPTY
    lines = joined(
        element("p", joined([text("strong", "Note:"), escaped(line, 600)])) for line in said
    )
    return element("div", lines, class_="warning", role="alert")


def _facts(report: Report) -> Html:
    found = headline_difference(report)
    accuracy = report["metric"] == "accuracy"
    what, unit = ("gain by trading", "points") if accuracy else ("loss spared by trading", "%")
    total = report["timings"].get("total_s")
    made, paid = len(report["trades"]), len(paid_trades(report))
    balance = ledger_verdict(report)
    facts: list[tuple[str, str, str]] = [
        (
            what,
            f"{signed(found['mean'], 1)} {unit}" if found else NONE,
            "",
        ),
        ("trades paid on chain", f"{paid:,} of {made:,}", _kind(paid == made) if made else ""),
        (
            "ledger",
            "✓ balances" if balance.good else "✗ does not balance",
            _kind(balance.good),
        ),
        ("agents", f"{report['agents_count']:,}", ""),
        ("seeds", f"{len(report['seeds']):,}", ""),
        ("took", duration(total) if isinstance(total, (int, float)) else NONE, ""),
    ]
    return element(
        "dl",
        joined(
            element("div", joined([text("dt", name), text("dd", value, class_=kind)]))
            for name, value, kind in facts
        ),
        class_="facts",
    )


def _kind(good: bool) -> str:
    return "good" if good else "bad"


def _contents(keys: Iterable[str]) -> Html:
    links = joined(element("li", text("a", SECTIONS[key], href=f"#{key}")) for key in keys)
    return element("nav", element("ul", links), aria_label="Sections")


def _figure(picture: Picture) -> Html:
    width, height = _pixels(picture.png)
    data = base64.b64encode(picture.png).decode("ascii")
    image = Html(
        f'<img src="data:image/png;base64,{data}" alt="{escaped(picture.alt, 1_000)}"'
        f' width="{width * CSS_DPI // DPI}" height="{height * CSS_DPI // DPI}">'
    )
    parts = [text("h3", picture.title), image]
    if picture.caption:
        parts.append(text("figcaption", f"{picture.caption} (plots/{picture.name}.png)"))
    return element("figure", joined(parts, Html("\n")))


def _pixels(png: bytes) -> tuple[int, int]:
    """Return width and height from the PNG's first chunk."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _verdict(report: Report) -> Html:
    verdict = ledger_verdict(report)
    mark = "✓ " if verdict.good else "✗ "
    return text("p", mark + verdict.sentence, class_=_kind(verdict.good))


def _settings(report: Report) -> Html:
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    rule = "clean (rows that choose α, score the gain and report are disjoint)"
    if report["protocol"] == "paper":
        rule = "paper (the test set chooses α, scores the gain and reports)"
    words = (
        f"Data set {legible(report['dataset'], 60)}; protocol {rule}; "
        f"{'priced' if report['priced'] else 'free of charge'}; "
        f"{counted(report['agents_count'], 'agent')}, {counted(report['epochs'], 'epoch')}, "
        f"{counted(report['rounds'], 'round')} of trading; seeds {seeds or NONE}."
    )
    return text("p", words)
