"""What a person sees of a run at a terminal, and what a log file keeps of it."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from node.devnet.report import captions
from node.devnet.report.document import Report
from node.devnet.report.findings import trading_by_arm
from node.devnet.report.progress import Progress
from node.devnet.report.rows import learnt
from node.devnet.report.table import print_report
from node.devnet.report.words import (
    duration,
    legible,
    play_ether,
    shortened,
    signed,
    size,
    three_digits,
    unit_for,
)
from tests.devnet.test_report_samples import SAMPLES, hostile_report, make_report

TWO_OF = ["aligned", "2", "of"]


def printed(report: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, Path("runs/one"), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Screen(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# ── the table ──


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_kind_of_run_has_a_table(sample: str, width: int) -> None:
    lines = printed(SAMPLES[sample](), width).splitlines()
    assert any("Ledger" in line for line in lines)
    assert any("runs/one/report.html" in line for line in lines)


def test_the_table_says_what_was_learnt_and_what_it_is_sure_of() -> None:
    report = make_report(seeds=3, epochs=10)
    text = printed(report)
    figure = report["arms"]["aligned"]["accuracy"]["A"]
    assert f"{figure:.2f} ± " in text
    row = next(r for r in report["differences"] if (r["of"], r["agent"]) == ("aligned", "all"))
    assert row["low"] is not None
    assert f"{row['mean']:+.2f}" in text
    assert f"{row['low']:+.2f}".replace("-", "−") in text


def test_few_trades_are_listed_and_many_are_added_up() -> None:
    few, many = make_report(seeds=1, trades_kept=3), make_report(seeds=1)
    assert "Every trade" in printed(few)
    assert few["trades"][0]["id"][:5] in printed(few)
    assert "Every trade" not in printed(many)
    made = sum(trade["arm"] == "aligned" for trade in many["trades"])
    assert f"{made} of 90" in printed(many)


def test_each_trade_has_a_line_of_eighty_columns() -> None:
    report = make_report(seeds=1, trades_kept=3)
    lines = printed(report, 80).splitlines()
    for trade in report["trades"]:
        (line,) = (line for line in lines if trade["id"][:5] in line)
        assert line.split()[1:4] == [trade["buyer"], "◄", trade["seller"]]
        assert line.split()[-1] == f"{sum(trade['gas'].values()):,}"


def test_a_purchase_that_came_to_nothing_is_neither_paid_nor_counted_in_the_sums() -> None:
    report = make_report(seeds=1, trades_kept=3, arms=("out-of-market", "aligned"))
    lost, *paid = report["trades"]
    lost["state"], lost["on_chain"] = "abandoned", "none"
    lost["price"], lost["alpha"] = str(10**21), 0.99
    (row,) = trading_by_arm(report)
    assert (row.begun, row.paid) == (3, 2)
    assert row.total == sum(int(trade["price"]) for trade in paid)
    assert row.median_price in [int(trade["price"]) for trade in paid]
    assert row.alpha == pytest.approx(sum(trade["alpha"] or 0 for trade in paid) / 2)
    line = next(line for line in printed(report).splitlines() if line.split()[:3] == TWO_OF)
    assert line.split()[3:5] == ["90", "3"]
    assert "1000." not in captions.matrix_alt(report)


def test_the_mean_is_over_those_who_got_to_the_end_in_every_arm() -> None:
    report = make_report(seeds=1, agents=3, epochs=8, arms=("out-of-market", "aligned"))
    alone, market = (report["arms"][arm]["accuracy"] for arm in ("out-of-market", "aligned"))
    report["arms"]["aligned"]["accuracy"] = {**market, "agent-2": None}
    found = learnt(report)
    assert found.mean[0] == "mean of 2"
    there = [alone[name] or 0 for name in ("agent-0", "agent-1")]
    assert found.mean[1][0] == f"{sum(there) / 2:.2f}"
    assert found.agents[2][1][1] == "–"


def test_what_an_agent_costs_is_told_if_it_is_known() -> None:
    report = make_report(seeds=1, epochs=8)
    assert "2 agents: 1.46 s a round, 0.73 s an agent; 61.2 MB an agent" in printed(report)
    report["cost"] = {"seconds_a_round": 2.5, "seconds_a_round_and_agent": 1.25}
    assert "2.5 s a round, 1.25 s an agent.\n" in printed(report)
    report["cost"] = {}
    assert "s a round" not in printed(report)


def test_many_agents_have_one_line_together() -> None:
    text = printed(make_report(agents=12, seeds=1, epochs=8))
    assert "mean of 12" in text
    assert "greatest" in text
    assert "agent-7" not in text


def test_an_interrupted_run_and_an_open_ledger_come_first() -> None:
    report = make_report(seeds=1, epochs=8, cut_at=(0, "aligned", 3))
    report["ledger"]["open_trades"] = 2
    report["ledger"]["balances"] = False
    lines = printed(report).splitlines()
    assert lines[0].startswith("Interrupted: 3 of 4 runs")
    assert "DOES NOT BALANCE: 2 open trades" in " ".join(lines[1:3])
    assert any(line.startswith("✗ Ledger") for line in lines)


def test_a_name_can_neither_steer_the_terminal_nor_speak_its_markup() -> None:
    text = printed(hostile_report())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]" in printed(hostile_report(), 300)


# ── the progress ──


def play(progress: Progress, *, epochs: int = 10, agents: int = 2) -> None:
    progress.start("aligned", 0, epochs)
    for epoch in range(epochs):
        for agent in range(agents):
            progress.epoch("aligned", 0, f"agent-{agent}", epoch, 50.0 + epoch + agent)
        progress.trade("aligned", 0, "agent-0", "agent-1", 10**16 * (epoch + 1))
    progress.end("aligned", 0)


def test_a_log_file_gets_a_few_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=40)
    with Progress(console=console) as progress:
        play(progress, epochs=50)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    assert 5 <= len(lines) <= 8
    assert lines[0].startswith("seed 0  aligned  epoch 0/50")
    assert lines[-1] == (
        "seed 0  aligned  epoch 50/50  agent-0 99.00%  agent-1 100.00%  50 trades"
        "  last 0.500000 play-ether  done"
    )


def test_a_pipe_is_no_terminal_even_where_colour_is_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO(), width=80)
    with Progress(console=console) as progress:
        play(progress)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[?25l" not in console.file.getvalue()


def test_a_terminal_gets_one_line_a_run_that_is_redrawn() -> None:
    console = Console(file=Screen(), force_terminal=True, width=120, height=30)
    with Progress(console=console) as progress:
        play(progress)
        progress.start("fedavg", 0, 10)
        shown = Console(file=io.StringIO(), width=120)
        shown.print(progress.render())
    assert isinstance(shown.file, io.StringIO)
    first, second = shown.file.getvalue().splitlines()
    assert "epoch 10/10" in first
    assert "last 0.100000 play-ether" in first
    assert "fedavg" in second
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_small_terminal_keeps_the_runs_that_are_under_way() -> None:
    console = Console(file=Screen(), force_terminal=True, width=100, height=8)
    progress = Progress(console=console)
    for seed in range(20):
        progress.start("aligned", seed, 5)
        if seed < 18:
            progress.end("aligned", seed)
    shown = Console(file=io.StringIO(), width=100)
    shown.print(progress.render())
    assert isinstance(shown.file, io.StringIO)
    lines = shown.file.getvalue().splitlines()
    assert lines[0] == "16 done before"
    assert [line.split()[1] for line in lines[1:]] == ["16", "17", "18", "19"]


def test_many_agents_are_told_as_mean_least_and_greatest() -> None:
    console = Console(file=io.StringIO(), width=200)
    with Progress(console=console) as progress:
        play(progress, agents=9)
    assert isinstance(console.file, io.StringIO)
    assert "9 agents 63.00% (59.00% to 67.00%)" in console.file.getvalue()


def test_a_loss_is_no_percentage() -> None:
    console = Console(file=io.StringIO(), width=200)
    with Progress(metric="loss", console=console) as progress:
        progress.start("unaligned", 3, 1)
        progress.epoch("unaligned", 3, "A", 0, 0.01234)
        progress.end("unaligned", 3)
    assert isinstance(console.file, io.StringIO)
    assert "A 0.0123  0 trades" in console.file.getvalue()


def test_an_error_passes_through_and_leaves_what_was_shown() -> None:
    console = Console(file=Screen(), force_terminal=True, width=100, height=20)
    with pytest.raises(KeyboardInterrupt), Progress(console=console) as progress:
        progress.start("aligned", 0, 5)
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert "aligned" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[?25h")


def test_threads_may_tell_at_once_and_no_trade_is_lost() -> None:
    console = Console(file=Screen(), force_terminal=True, width=100, height=20)
    with Progress(console=console) as progress:
        progress.start("aligned", 0, 500)

        def trader(name: str) -> None:
            for epoch in range(500):
                progress.epoch("aligned", 0, name, epoch, 1.0)
                progress.trade("aligned", 0, name, "x", epoch)
                progress.render()

        threads = [threading.Thread(target=trader, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shown = Console(file=io.StringIO(), width=120)
        shown.print(progress.render())
    assert isinstance(shown.file, io.StringIO)
    assert "2,000 trades" in shown.file.getvalue()


def test_what_was_not_announced_is_shown_all_the_same() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Progress(console=console) as progress:
        progress.trade("aligned", 1, "A", "B", 5)
        progress.end("aligned", 1)
    assert isinstance(console.file, io.StringIO)
    assert "1 trade" in console.file.getvalue()


# ── words ──


@given(st.text(), st.integers(3, 60))
def test_legible_text_is_one_short_line_without_control(text: str, limit: int) -> None:
    line = legible(text, limit)
    assert len(line) <= limit
    assert not any(ord(c) < 32 or ord(c) == 127 for c in line)
    line.encode("utf-8")  # no lone surrogate


@given(st.text(min_size=1), st.integers(3, 40))
def test_shortened_text_keeps_both_ends(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) == min(len(text), limit)
    assert short[0] == text[0]
    assert limit < 4 or short[-1] == text[-1]


@pytest.mark.parametrize(
    ("wei", "words"),
    [
        ("0", "0.000000"),
        ("1", "under 0.000001"),
        ("1000000000000000000", "1.000000"),
        ("123456789123456789", "0.123457"),
        (-(10**17), "−0.100000"),
        ("340282366920938463463374607431768211456", "340282366920938463463.374607"),
    ],
)
def test_play_ether_is_rounded_for_reading_only(wei: str | int, words: str) -> None:
    assert play_ether(wei) == words


@pytest.mark.parametrize(
    ("largest", "name"),
    [(0, "play-ether"), (10**15, "play-ether"), (10**15 - 1, "play-gwei"), (10**5, "wei")],
)
def test_an_axis_has_the_unit_that_reads_well(largest: int, name: str) -> None:
    assert unit_for([0, largest]).name == name


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (171.3, "2 min 51 s"),
        (7_260, "2 h 01 min"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes_and_digits_are_short() -> None:
    assert [size(n) for n in (999, 1_000, 210_441_330, 3 * 10**9)] == [
        "999 bytes",
        "1.0 kB",
        "210.4 MB",
        "3.00 GB",
    ]
    assert [three_digits(v) for v in (0, 0.0989, 0.5, 7.349, 98.2, 1_234.5, 1e-9)] == [
        "0",
        "0.0989",
        "0.500",
        "7.35",
        "98.2",
        "1,234",
        "1.00e-09",
    ]
    assert signed(-1.234) == "−1.23"
