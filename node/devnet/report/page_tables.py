"""The tables of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from node.devnet.report.document import (
    ALL_AGENTS,
    STEPS,
    AgentRow,
    Report,
    Trade,
    agent_names,
    arms_of,
    in_order,
)
from node.devnet.report.findings import (
    mean_of,
    not_made,
    spread_over_seeds,
    trading_by_arm,
)
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
from node.devnet.report.words import (
    NONE,
    alpha_text,
    arm_words,
    cause_words,
    duration,
    figure,
    legible,
    metric_words,
    percent,
    play_ether,
    signed,
    size,
)

OPEN_ROWS: Final = 40
"""A longer table is folded until the reader asks for it."""
MOST_TRADES: Final = 2_000
"""A page with more rows is slow to open; the rest is in the JSON."""


def arms(report: Report) -> Html:
    """Return agents by arms: the mean over seeds, and its spread."""
    played = [arm for arm in arms_of(report) if arm in report["arms"]]
    if not played:
        return text("p", "No arm was played.")
    metric = report["metric"]
    rows: list[list[Html]] = []
    for name in agent_names(report):
        row = [escaped(name, 60)]
        for arm in played:
            spread = spread_over_seeds(report["arms"][arm], name)
            words = figure(report["arms"][arm]["accuracy"].get(name), metric)
            row.append(number(words if spread is None else f"{words} ± {figure(spread, metric)}"))
        rows.append(row)
    means = [figure(mean_of(report["arms"][arm]["accuracy"].values()), metric) for arm in played]
    rows.append([escaped("mean over agents"), *map(number, means)])
    spread_words = "; ± standard deviation over seeds" if len(report["seeds"]) > 1 else ""
    whole = table(
        f"{metric_words(metric).capitalize()} after the last epoch, mean over seeds{spread_words}",
        ["agent", *(legible(arm, 40) for arm in played)],
        rows,
        numeric="-" + "n" * len(played),
    )
    rules = joined(
        Html(f"<li><strong>{escaped(arm, 60)}</strong>: {escaped(arm_words(arm))}</li>")
        for arm in played
        if arm_words(arm)
    )
    return joined([whole, Html(f'<ul class="soft">{rules}</ul>') if rules else EMPTY])


def differences(report: Report) -> Html:
    """Return the paired differences: over all agents openly, of each agent folded."""
    everyone = [row for row in report["differences"] if row["agent"] == ALL_AGENTS]
    single = [row for row in report["differences"] if row["agent"] != ALL_AGENTS]
    if not everyone and not single:
        return text("p", "There are no two arms to compare.")

    def rows(of_agents: bool) -> list[list[Html]]:
        return [
            [
                word(f"{legible(row['of'], 40)} against {legible(row['against'], 40)}", 90),
                escaped(row["agent"] if of_agents else "all", 60),
                number(signed(row["mean"])),
                number(f"{signed(row['low'])} to {signed(row['high'])}")
                if row["low"] is not None
                else number(NONE),
                number(row["n"]),
            ]
            for row in (single if of_agents else everyone)
        ]

    unit = "points" if report["metric"] == "accuracy" else "% of loss spared"
    headings = ["arms", "agent", f"mean ({unit})", "95 % interval", "seeds"]
    caption = "Paired differences over seeds; above 0, the first arm is better"
    return joined(
        [
            table(caption, headings, rows(False), numeric="--nnn"),
            folded(
                "The same for each agent",
                table(f"{caption}; by agent", headings, rows(True), numeric="--nnn"),
                opened=len(single) <= 12,
            ),
        ]
    )


def trading(report: Report) -> Html:
    """Return each market arm's trades, added up."""
    rows = [
        [
            word(row.arm),
            number(f"{row.possible:,}"),
            number(f"{row.made:,}"),
            number(f"{row.paid:,}"),
            number(NONE if row.median_price is None else play_ether(row.median_price)),
            number(play_ether(row.total)),
            number(alpha_text(row.alpha)),
            number(percent(row.gain)),
            escaped(
                ", ".join(f"{cause_words(c)} {n:,}" for c, n in not_made(report, row.arm).items())
                or "none"
            ),
        ]
        for row in trading_by_arm(report)
    ]
    if not rows:
        return text("p", "No market arm was played.")
    headings = ["arm", "possible", "made", "paid", "median price", "total", "mean α", "mean gain"]
    caption = "Trades by arm, over all seeds; prices in play-ether"
    return table(caption, [*headings, "not made for"], rows, numeric="-nnnnnnn-")


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
    rows = [[escaped(words), number(int(wei)), number(play_ether(wei))] for words, wei in amounts]
    rows.append([escaped("open trades"), number(book["open_trades"]), EMPTY])
    return table(
        "The escrow's ledger, added up from the chain's own events",
        ["what", "wei", "play-ether"],
        rows,
        numeric="-nn",
    )


def gas(report: Report) -> Html:
    """Return gas by step."""
    rows = [
        [
            escaped(step, 40),
            number(f"{report['gas'][step]['count']:,}"),
            number(f"{report['gas'][step]['mean']:,.0f}"),
            number(f"{report['gas'][step]['total']:,}"),
        ]
        for step in in_order(report["gas"], STEPS)
    ]
    if not rows:
        return EMPTY
    return table(
        "Gas by step", ["step", "transactions", "mean gas", "total gas"], rows, numeric="-nnn"
    )


def network(report: Report) -> Html:
    """Return what went over the wire, and what was refused and why."""
    net = report["network"]
    rows = [
        [escaped("transport"), escaped(net["transport"])],
        [escaped("offers sent"), number(f"{net['offers_sent']:,}")],
        [escaped("gossip accepted"), number(f"{net['accepted']:,}")],
        *_counts("gossip ignored", net["ignored"]),
        *_counts("gossip rejected", net["rejected"]),
        [escaped("bytes"), number(f"{net['bytes']:,} ({size(net['bytes'])})")],
        *_counts("bytes in", net["bytes_in"]),
        *_counts("bytes out", net["bytes_out"]),
    ]
    return table("Network, all nodes together", ["", ""], rows, numeric="-n")


def _counts(what: str, counts: Mapping[str, int]) -> list[list[Html]]:
    if not counts:
        return [[escaped(what), number(0)]]
    return [
        [escaped(f"{what}: {legible(reason, 60)}"), number(f"{count:,}")]
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def timings(report: Report) -> Html:
    """Return how long what took."""
    rows: list[list[Html]] = []
    for name, value in report["timings"].items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, seconds in parts.items():
            words = legible(f"{name} {part}".removesuffix(" "), 60).replace("_s", "")
            spent = NONE if seconds is None else duration(float(seconds))
            rows.append([escaped(words), number(spent)])
    return table("Time", ["", ""], rows, numeric="-n")


def machine(report: Report) -> Html:
    """Return what it ran on."""
    rows = [[escaped(key, 60), escaped(value)] for key, value in report["machine"].items()]
    return table("Machine", ["", ""], rows)
