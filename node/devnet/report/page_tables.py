"""The tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from node.devnet.report import rows
from node.devnet.report.document import STEPS, AgentRow, Report, Trade, in_order
from node.devnet.report.honesty_rows import honesty_tables
from node.devnet.report.markup import (
    EMPTY,
    Html,
    code,
    element,
    escaped,
    folded,
    joined,
    number,
    short,
    table,
    text,
    under,
    word,
)
from node.devnet.report.strategy_rows import FORMULAS, Shown, strategy_tables
from node.devnet.report.words import (
    NONE,
    alpha_text,
    arm_words,
    duration,
    legible,
    percent,
    play_ether,
    size,
)

OPEN_ROWS: Final = 40
"""A longer table is folded until the reader asks for it."""
MOST_TRADES: Final = 2_000
"""A page with more rows is slow to open; the rest is in the JSON."""


def arms(report: Report) -> Html:
    """Return agents by arms: the mean over seeds, and its spread."""
    found = rows.learnt(report)
    if not found.arms:
        return text("p", "No arm was played.")
    whole = table(
        found.title,
        ["agent", *(legible(arm, 40) for arm in found.arms)],
        [[escaped(name, 60), *map(number, cells)] for name, cells in (*found.agents, found.mean)],
        numeric="-" + "n" * len(found.arms),
    )
    rules = joined(
        Html(f"<li><strong>{escaped(arm, 60)}</strong>: {escaped(arm_words(arm))}</li>")
        for arm in found.arms
        if arm_words(arm)
    )
    return joined([whole, Html(f'<ul class="soft">{rules}</ul>') if rules else EMPTY])


def differences(report: Report) -> Html:
    """Return the paired differences: over all agents openly, of each agent folded."""
    everyone, single = rows.compared(report), rows.compared(report, by_agent=True)
    if not everyone and not single:
        return text("p", "There are no two arms to compare.")

    def shown(caption: str, found: Sequence[rows.Compared]) -> Html:
        headings = ["arms", "agent", f"mean ({rows.difference_unit(report)})"]
        cells = [
            [word(row.arms, 90), escaped(row.agent, 60), *map(number, row[2:])] for row in found
        ]
        return table(caption, [*headings, "95 % interval", "seeds"], cells, numeric="--nnn")

    caption = "Paired differences over seeds; above 0, the first arm is better"
    return joined(
        [
            shown(caption, everyone),
            folded(
                "The same for each agent",
                shown(f"{caption}; by agent", single),
                opened=len(single) <= 12,
            ),
        ]
    )


def trading(report: Report) -> Html:
    """Return each market arm's trades, added up."""
    found = rows.traded(report)
    if not found:
        return text("p", "No market arm was played.")
    headings = ["arm", "possible", "begun", "paid", "median price", "total", "mean α", "mean gain"]
    caption = "Trades by arm, over all seeds; prices, in play-ether, and means are of what was paid"
    cells = [
        [word(row.arm), *map(number, row[1:-1]), escaped(row.lost or "none", 400)] for row in found
    ]
    return table(caption, [*headings, "not made for"], cells, numeric="-nnnnnnn-")


def trades(report: Report) -> Html:
    """Return every trade, up to `MOST_TRADES`."""
    everyone = report["trades"]
    if not everyone:
        return text("p", "No trade was made.")
    shown = everyone[:MOST_TRADES]
    headings = ["trade", "arm", "seed", "round", "buyer", "seller", "price", "α"]
    headings += ["gain", "bound", "state, on chain", "gas", "transactions"]
    left = len(everyone) - len(shown)
    caption = "Every trade, oldest first; prices in play-ether and wei; hashes in full as titles"
    if left:
        caption += f"; {left:,} more are in report.json"
    whole = table(caption, headings, [_trade(row) for row in shown], numeric="--nn--nnnn-n-")
    summary = f"The {len(everyone):,} trades" if not left else f"The first {len(shown):,} trades"
    return folded(summary, whole, opened=len(shown) <= OPEN_ROWS, wide=True)


def _trade(row: Trade) -> list[Html]:
    steps = in_order(row["transactions"], STEPS)
    return [
        short(row["id"], 11),
        word(row["arm"]),
        number(row["seed"]),
        number(row["round"]),
        escaped(row["buyer"], 40),
        escaped(row["seller"], 40),
        _money(row["price"]),
        number(alpha_text(row["alpha"])),
        number(percent(row["gain"])),
        number(percent(row["bound"])),
        under(escaped(row["state"], 40), escaped(row["on_chain"], 40)),
        number(f"{sum(row['gas'].values()):,}"),
        element(
            "span",
            joined(short(row["transactions"][s], 9, before=legible(s, 20)) for s in steps),
            class_="steps",
        ),
    ]


def strategies(report: Report) -> Html:
    """Return what each strategy came to; nothing where there were none."""
    found = strategy_tables(report)
    if not found:
        return EMPTY
    shown = list(map(_shown, found))
    return joined([text("h3", "Strategies"), text("p", FORMULAS, class_="soft"), *shown])


def honesty(report: Report) -> Html:
    """Return what the broker found out about models; nothing where it had nothing to tell."""
    found = honesty_tables(report.get("honesty", ()))
    return joined([text("h3", "Honesty"), *map(_shown, found)]) if found else EMPTY


def _shown(one: Shown) -> Html:
    return table(
        one.title,
        one.headings,
        [
            [escaped(c) for c in row[: one.left]] + list(map(number, row[one.left :]))
            for row in one.rows
        ],
        numeric="-" * one.left + "n" * (len(one.headings) - one.left),
    )


def _money(wei: str) -> Html:
    """Return an amount in play-ether, and exactly in wei beneath."""
    return under(number(play_ether(wei)), escaped(f"{int(wei)} wei"))


def agents(report: Report) -> Html:
    """Return every agent in every arm and seed, with its account and its money."""
    if not report["agents"]:
        return text("p", "No agent came up.")
    headings = ["agent", "arm", "seed", "spent", "earned", "net", "account, peer id"]
    whole = table(
        "What each agent paid (fees included) and received, in play-ether and in wei",
        headings,
        [_agent(row) for row in report["agents"]],
        numeric="--nnnn-",
    )
    count = len(report["agents"])
    return folded(
        f"Money of the agents ({count:,} rows)", whole, opened=count <= OPEN_ROWS, wide=True
    )


def _agent(row: AgentRow) -> list[Html]:
    net = int(row["earned"]) - int(row["spent"])
    return [
        escaped(row["name"], 60),
        word(row["arm"]),
        number(row["seed"]),
        _money(row["spent"]),
        _money(row["earned"]),
        number(play_ether(net) if net <= 0 else f"+{play_ether(net)}"),
        under(code(row["account"]), code(row["peer_id"])),
    ]


def ledger(report: Report) -> Html:
    """Return where the wei came from and where it went."""
    book = report["ledger"]
    amounts = (
        ("deposited by buyers", book["deposited"]),
        ("= paid out to sellers", book["paid_out"]),
        ("+ fees of the broker", book["fees"]),
        ("+ refunded to buyers", book["refunded"]),
        ("+ held in open trades", book["held"]),
        ("credited, not yet withdrawn", book["credited"]),
        ("stuck: unaccounted for", book["stuck"]),
    )
    cells = [[escaped(words), number(int(wei)), number(play_ether(wei))] for words, wei in amounts]
    cells.append([escaped("open trades"), number(book["open_trades"]), EMPTY])
    return table(
        "The escrow's ledger, added up from the chain's own events",
        ["what", "wei", "play-ether"],
        cells,
        numeric="-nn",
    )


def gas(report: Report) -> Html:
    """Return gas by step."""
    cells = [
        [
            escaped(step, 40),
            number(f"{report['gas'][step]['count']:,}"),
            number(f"{report['gas'][step]['mean']:,.0f}"),
            number(f"{report['gas'][step]['total']:,}"),
        ]
        for step in in_order(report["gas"], STEPS)
    ]
    if not cells:
        return EMPTY
    return table(
        "Gas by step", ["step", "transactions", "mean gas", "total gas"], cells, numeric="-nnn"
    )


def network(report: Report) -> Html:
    """Return what went over the wire, and what was refused and why."""
    net = report["network"]
    cells = [
        [escaped("transport"), escaped(net["transport"])],
        [escaped("offers sent"), number(f"{net['offers_sent']:,}")],
        [escaped("gossip accepted"), number(f"{net['accepted']:,}")],
        *_counts("gossip ignored", net["ignored"]),
        *_counts("gossip rejected", net["rejected"]),
        [escaped("bytes"), number(f"{net['bytes']:,} ({size(net['bytes'])})")],
        *_counts("bytes in", net["bytes_in"]),
        *_counts("bytes out", net["bytes_out"]),
    ]
    return table("Network, all nodes together", ["", ""], cells, numeric="-n")


def _counts(what: str, counts: Mapping[str, int]) -> list[list[Html]]:
    if not counts:
        return [[escaped(what), number(0)]]
    return [
        [escaped(f"{what}: {legible(reason, 60)}"), number(f"{count:,}")]
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def timings(report: Report) -> Html:
    """Return how long what took."""
    cells: list[list[Html]] = []
    for name, value in report["timings"].items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, seconds in parts.items():
            words = legible(f"{name.removesuffix('_s')} {part}", 60)
            spent = NONE if seconds is None else duration(float(seconds))
            cells.append([escaped(words), number(spent)])
    return table("Time", ["", ""], cells, numeric="-n")


def machine(report: Report) -> Html:
    """Return what it ran on."""
    return _named("Machine", report["machine"].items())


def cost(report: Report) -> Html:
    """Return what an agent costs, where that is known."""
    names = rows.COST_WORDS
    found = [(names.get(name, name), value) for name, value in report["cost"].items()]
    return _named("Cost, all agents in one process", found) if found else EMPTY


def settings(report: Report) -> Html:
    """Return all that was asked for."""
    return folded("Every setting", _named("Settings", rows.settings(report)), opened=False)


def _named(caption: str, values: Iterable[tuple[str, object]]) -> Html:
    return table(caption, ["", ""], [[escaped(n, 60), escaped(value)] for n, value in values])
