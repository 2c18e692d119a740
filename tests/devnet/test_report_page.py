"""The page: whole, self-contained, honest about what is missing, deaf to what is foreign."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from node.devnet.report import files
from node.devnet.report.document import Report, as_written
from node.devnet.report.files import write_report
from node.devnet.report.page import page
from node.devnet.report.page_tables import MOST_TRADES
from node.devnet.report.plots import PLOTS, Picture
from tests.devnet.test_report_samples import (
    HOSTILE,
    SAMPLES,
    empty_report,
    hostile_report,
    make_report,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "link", "img", "br"}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(report: Report) -> str:
    """Return the page with one-pixel pictures: drawing is another test's matter."""
    written = as_written(report)
    pictures = {
        name: Picture(name, plot.title, plot.caption(written), plot.alt(written), PIXEL)
        for name, plot in PLOTS.items()
    }
    return page(written, pictures)


@pytest.fixture
def small() -> Report:
    return make_report(seeds=2, epochs=8, arms=("out-of-market", "unaligned", "aligned"))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_page_is_well_formed_and_asks_nobody_for_anything(sample: str) -> None:
    html = page_of(SAMPLES[sample]())
    reader = Reader(html)
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not {"iframe", "object", "embed", "form", "base"} & {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_of_the_page_forbids_scripts_and_requests(small: Report) -> None:
    (policy,) = [
        attributes["content"]
        for attributes in Reader(page_of(small)).all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_every_picture_says_in_words_what_it_shows(small: Report) -> None:
    images = Reader(page_of(small)).all("img")
    assert len(images) == len(PLOTS)
    assert all(len(image["alt"] or "") > 20 for image in images)


def test_every_heading_of_a_table_says_what_it_heads(small: Report) -> None:
    reader = Reader(page_of(small))
    assert {heading["scope"] for heading in reader.all("th")} == {"col", "row"}
    assert len(reader.all("caption")) == len(reader.all("table"))


def test_the_headline_says_the_gain_the_trades_and_the_ledger(small: Report) -> None:
    text = Reader(page_of(small)).text
    (market,) = [
        row
        for row in small["differences"]
        if (row["of"], row["against"], row["agent"]) == ("aligned", "out-of-market", "all")
    ]
    assert f"Trading (aligned) raised test accuracy by {market['mean']:.1f} points" in text
    assert f"All {len(small['trades'])} trades were paid on chain." in text
    assert "The ledger balances" in text


def test_a_gain_that_may_be_chance_is_said_to_be(small: Report) -> None:
    for row in small["differences"]:
        row["mean"], row["low"], row["high"] = -0.4, -2.0, 1.2
    text = Reader(page_of(small)).text
    assert "lowered test accuracy by 0.4 points against" in text
    assert "that may be chance" in text


def test_a_loss_is_cut_by_percent() -> None:
    text = Reader(page_of(make_report(metric="loss", arms=("out-of-market", "unaligned")))).text
    assert re.search(
        r"Trading \(unaligned\) cut test loss by \d+\.\d % against training alone", text
    )
    assert "% of loss spared" in text


def test_every_trade_has_its_price_in_wei_and_its_transactions_in_full(small: Report) -> None:
    reader = Reader(page_of(small))
    trade = small["trades"][0]
    assert f"{trade['price']} wei" in reader.text
    titles = [code["title"] for code in reader.all("code") if "title" in code]
    assert trade["id"] in titles
    for step, transaction in trade["transactions"].items():
        assert f"{step} {transaction}" in titles


def test_every_agent_has_its_account_and_its_peer_id(small: Report) -> None:
    text = Reader(page_of(small)).text
    for agent in small["agents"]:
        assert agent["account"] in text
        assert agent["peer_id"] in text
        assert f"{agent['spent']} wei" in text


def test_the_ledger_is_shown_to_the_wei(small: Report) -> None:
    text = Reader(page_of(small)).text
    for amount in ("deposited", "paid_out", "fees"):
        assert small["ledger"][amount] in text


def test_an_interrupted_run_says_so_before_anything_else() -> None:
    report = make_report(seeds=2, epochs=10, cut_at=(1, "fedavg", 4))
    text = Reader(page_of(report)).text
    warning = text.index("Interrupted: 5 of 8 runs")
    assert warning < text.index("Trading (aligned)")
    assert 'role="alert"' in page_of(report)


def test_a_run_that_ended_before_it_began_has_a_page() -> None:
    text = Reader(page_of(empty_report())).text
    assert "Interrupted: nothing was played." in text
    assert "There is nothing yet to compare" in text


def test_a_whole_run_has_no_warning(small: Report) -> None:
    assert 'role="alert"' not in page_of(small)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stuck": "5", "balances": False}, "5 wei stuck"),
        ({"open_trades": 1, "balances": False}, "1 open trade"),
        ({"fees": "1"}, "its amounts do not add up"),
        ({"balances": False}, "the run says so"),
    ],
)
def test_a_ledger_that_does_not_balance_is_a_warning(
    small: Report, change: dict[str, Any], words: str
) -> None:
    small["ledger"].update(change)  # type: ignore[typeddict-item]  # parts of it
    text = Reader(page_of(small)).text
    assert "The ledger DOES NOT BALANCE" in text
    assert words in text
    assert "✗ does not balance" in text


def test_a_trade_that_was_not_paid_is_a_warning(small: Report) -> None:
    small["trades"][0]["on_chain"] = "refunded"
    paid = len(small["trades"]) - 1
    assert f"{paid} of {paid + 1} trades were paid on chain." in Reader(page_of(small)).text
    assert 'role="alert"' in page_of(small)


def test_what_a_reader_must_know_first_is_told(small: Report) -> None:
    small["notes"] = ["agent B went away in round 3"]
    text = Reader(page_of(small)).text
    assert text.index("agent B went away") < text.index("raised test accuracy")


def test_hostile_text_stays_text() -> None:
    html = page_of(hostile_report())
    reader = Reader(html)  # which fails on any element that does not belong
    assert "<script" not in html
    assert "<img src=x" not in html
    assert '<script>alert("x")</script>' in reader.text
    assert {image["src"] for image in reader.all("img")} == {reader.all("img")[0]["src"]}
    for steering in ("\x1b", "\u202e", "\x00", "\ud800"):
        assert steering not in html
    assert max(len(word) for word in reader.words) < 2_000
    assert HOSTILE[3] not in html


def test_a_time_keeps_its_name_whatever_is_in_it(small: Report) -> None:
    small["timings"] = {"by_seed": {"0": 1.0}, "total_s": 2.0}
    text = Reader(page_of(small)).text
    assert "by_seed 0 1.0 s" in text
    assert "total 2.0 s" in text


def test_every_setting_and_the_cost_are_on_the_page(small: Report) -> None:
    text = Reader(page_of(small)).text
    assert "fee basis points 200" in text
    assert "leaves 1: 3" in text
    assert "code version 0.1.0+0123abc" in text
    assert "memory an agent, MB 61.2" in text
    small["cost"] = {}
    assert "memory an agent" not in Reader(page_of(small)).text


def test_what_is_said_of_a_report_needs_no_plotting_library() -> None:
    ask = (
        "import sys; from node.devnet.report import captions, rows, table; "
        "print('matplotlib' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", ask],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert said == "False\n"


def test_more_trades_than_a_page_holds_are_left_to_the_json(small: Report) -> None:
    small["trades"] = [dict(small["trades"][0], round=i) for i in range(MOST_TRADES + 7)]  # type: ignore[misc]  # copies
    html = page_of(small)
    assert "7 more are in report.json" in html
    assert len(html) < 10_000_000


# ── the files ──


def test_the_files_of_a_report_are_all_there_and_say_the_same(tmp_path: Path) -> None:
    report = make_report(seeds=1, epochs=7)
    folder = tmp_path / "runs" / "one"
    write_report(folder, report)
    assert sorted(path.name for path in folder.iterdir()) == ["plots", "report.html", "report.json"]
    assert {path.stem for path in (folder / "plots").iterdir()} == set(PLOTS)
    assert json.loads((folder / "report.json").read_text("ascii")) == as_written(report)
    reader = Reader((folder / "report.html").read_text("utf-8"))
    inlined = [(image["src"] or "").partition(",")[2] for image in reader.all("img")]
    on_disk = [base64.b64encode(p.read_bytes()).decode() for p in (folder / "plots").iterdir()]
    assert sorted(inlined) == sorted(on_disk)
    assert stat.S_IMODE((folder / "report.json").stat().st_mode) & 0o400


def test_the_json_is_whole_even_if_a_plot_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Report) -> dict[str, Picture]:
        raise MemoryError

    monkeypatch.setattr(files, "draw_all", fail)
    with pytest.raises(MemoryError):
        write_report(tmp_path, make_report(seeds=1, epochs=7))
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is True


def test_an_earlier_report_outlives_a_failed_write_of_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text("earlier")

    def full(_: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, make_report(seeds=1, epochs=7))
    assert (tmp_path / "report.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


# ── a browser ──


def console_of(path: Path, profile: Path) -> list[str]:
    """Open a page in headless Chromium; return what its console said, one message a line."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
        *("--enable-logging=stderr", "--v=0", f"--screenshot={profile / 'page.png'}"),
        *("--window-size=1200,4000", path.as_uri()),
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as browser:
        try:
            _, said = browser.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)
            raise
    assert (profile / "page.png").stat().st_size > 10_000, said
    return [line for line in said.splitlines() if "CONSOLE" in line]


@pytest.mark.interop
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("sample", ["small", "hostile"])
def test_the_page_opens_in_chromium_without_a_word_on_the_console(
    tmp_path: Path, small: Report, sample: str
) -> None:
    write_report(tmp_path, small if sample == "small" else hostile_report())
    assert console_of(tmp_path / "report.html", tmp_path / "profile") == []


@pytest.mark.interop
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_a_script_that_found_its_way_into_the_page_would_not_run(
    tmp_path: Path, small: Report
) -> None:
    """And it shows that an error on the console is seen by the tests above."""
    smuggled = "<script>console.error('ran')</script></body>"
    (tmp_path / "page.html").write_text(page_of(small).replace("</body>", smuggled), "utf-8")
    said = console_of(tmp_path / "page.html", tmp_path / "profile")
    assert any("Content Security Policy" in line for line in said)
    assert not any("ran" in line.split('"')[1:2] for line in said)
