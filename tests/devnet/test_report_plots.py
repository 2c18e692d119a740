"""Every plot of every kind of run: drawn, nothing cut, nothing on top of another, told apart."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from node.devnet.report.costs import draw_gas, draw_lost
from node.devnet.report.document import Report, as_written
from node.devnet.report.learning import draw_differences, draw_learning
from node.devnet.report.plots import PLOTS, draw, draw_all
from node.devnet.report.style import ARM_COLOURS, FATE_COLOURS, SETTINGS, label, spread
from node.devnet.report.trading import draw_alpha, draw_gain, draw_matrix, draw_price
from tests.devnet.test_report_samples import SAMPLES, hostile_report, make_report

SLOWER = ("four-arms", "four-agents", "sixteen", "thirty-two", "free", "interrupted")


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with mpl.rc_context(SETTINGS):
        yield


def said(figure: Figure) -> list[str]:
    """Return every piece of text in a figure, tick labels too, once it is drawn."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def points(line: Line2D) -> np.ndarray:
    """Return a line's (x, y), one a row."""
    return np.asarray(line.get_xydata())


def texts_of(figure: Figure) -> list[Text]:
    """Return the texts that are really drawn."""
    shown: list[Text] = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        shown += axes.texts
        if not axes.axison:
            continue
        shown += [axes.xaxis.label, axes.yaxis.label]
        shown += [text for text in axes.get_children() if isinstance(text, Text)]
        shown += within(axes)
    return [text for text in dict.fromkeys(shown) if text.get_visible() and text.get_text()]


def within(axes: Axes) -> list[Text]:
    low, high = sorted(axes.get_ylim())
    left, right = sorted(axes.get_xlim())
    ys = [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    return ys + [t for t in axes.get_xticklabels() if left <= t.get_position()[0] <= right]


@pytest.mark.parametrize(
    ("sample", "plot"),
    [
        pytest.param(s, p, marks=[pytest.mark.slow] if s in SLOWER else [])
        for s in SAMPLES
        for p in PLOTS
    ],
)
def test_no_text_of_a_plot_is_cut_off(sample: str, plot: str) -> None:
    figure = PLOTS[plot].draw(as_written(SAMPLES[sample]()))
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in texts_of(figure):
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} is cut off"


@pytest.mark.parametrize("draw_it", [draw_learning, draw_alpha, draw_price, draw_differences])
@pytest.mark.parametrize("agents", [2, 4])
def test_no_label_stands_on_another(draw_it: object, agents: int) -> None:
    report = as_written(make_report(agents=agents, seeds=2, epochs=10))
    assert callable(draw_it)
    figure = draw_it(report)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [(t.get_text(), Text.get_window_extent(t)) for t in (*axes.texts, *within(axes))]
        for (one, box), (other, second) in itertools.combinations(boxes, 2):
            assert not box.overlaps(second), f"{one!r} stands on {other!r}"


def test_the_pictures_are_png_of_a_readable_size_with_words_for_those_who_do_not_see() -> None:
    pictures = draw_all(as_written(make_report(seeds=1, epochs=7)))
    assert list(pictures) == list(PLOTS)
    for picture in pictures.values():
        assert picture.png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", picture.png[16:24])
        assert 400 <= width <= 1_500
        assert 150 <= height <= 2_500
        assert len(picture.alt) > 20
        assert picture.caption


def test_the_same_report_gives_the_same_bytes() -> None:
    report = as_written(make_report(seeds=1, epochs=7))
    assert draw(PLOTS["alpha"], report) == draw(PLOTS["alpha"], report)


def test_drawing_needs_no_display_and_leaves_no_global_state() -> None:
    program = (
        "import sys, matplotlib; from node.devnet.report.plots import draw_all; "
        "from node.devnet.report.document import as_written; "
        "from node.devnet.report.style import SETTINGS; "
        "from tests.devnet.test_report_samples import make_report; "
        "before = {key: matplotlib.rcParams[key] for key in SETTINGS}; "
        "draw_all(as_written(make_report(seeds=1, epochs=7))); "
        "assert {key: matplotlib.rcParams[key] for key in SETTINGS} == before; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"HOME": "/tmp"}, timeout=120)


# ── what they say ──


def test_each_of_two_agents_has_a_panel_and_every_line_its_name_and_figure() -> None:
    report = as_written(make_report(seeds=2, epochs=8))
    figure = draw_learning(report)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B"]
    labels = [text.get_text() for text in figure.axes[0].texts]
    for arm, document in report["arms"].items():
        assert f"{arm} {document['accuracy']['A']:.2f}" in labels


def test_many_agents_are_shown_by_their_mean_with_a_band() -> None:
    figure = draw_learning(as_written(make_report(agents=6, seeds=1, epochs=8)))
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "mean over 6 agents"
    assert len(axes.collections) == 4  # a band an arm


def test_the_band_goes_from_the_least_to_the_greatest_seed() -> None:
    report = as_written(make_report(seeds=3, epochs=8, arms=("out-of-market",)))
    band = draw_learning(report).axes[0].collections[0].get_paths()[0].vertices
    last = [agents["A"] for agents in report["arms"]["out-of-market"]["by_seed"].values()]
    heights = [y for x, y in np.asarray(band) if x == 7]
    known = [figure for figure in last if figure is not None]
    assert min(heights) == pytest.approx(min(known))
    assert max(heights) == pytest.approx(max(known))


def test_training_alone_is_the_dashed_reference() -> None:
    axes = draw_learning(as_written(make_report(seeds=1, epochs=8))).axes[0]
    curves = [line for line in axes.get_lines() if len(points(line)) == 8]
    dashed = [line for line in curves if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == [ARM_COLOURS["out-of-market"]]


def test_a_seed_that_was_cut_short_is_not_in_the_mean() -> None:
    report = as_written(make_report(seeds=2, epochs=10, cut_at=(1, "fedavg", 4)))
    axes = draw_learning(report).axes[0]
    whole = report["arms"]["fedavg"]["curves"]["0"]["A"]
    lines = [line for line in axes.get_lines() if line.get_color() == ARM_COLOURS["fedavg"]]
    (mean,) = [line for line in lines if line.get_linestyle() == "-" and len(points(line)) > 1]
    assert points(mean)[:, 1].tolist() == [value for _, value in whole]
    assert [len(points(line)) for line in lines if line.get_linestyle() == ":"] == [4]


def test_a_loss_has_a_logarithmic_axis_and_its_own_unit() -> None:
    report = as_written(make_report(seeds=2, epochs=20, metric="loss"))
    figure = draw_learning(report)
    assert figure.axes[0].get_yscale() == "log"
    assert "mean squared test loss" in said(figure)
    assert any("loss spared" in text for text in said(draw_differences(report)))


def test_a_figure_that_was_not_finite_is_a_gap() -> None:
    report = make_report(seeds=1, epochs=6, arms=("out-of-market",))
    curve = list(report["arms"]["out-of-market"]["curves"]["0"]["A"])
    curve[2] = (2, float("nan"))
    report["arms"]["out-of-market"]["curves"] = {"0": {"A": curve}}
    assert said(draw_learning(as_written(report)))


@pytest.mark.parametrize(
    ("sample", "drawing", "words"),
    [
        ("no-trade", draw_matrix, "no trade was paid"),
        ("no-trade", draw_alpha, "no trade was paid"),
        ("no-trade", draw_gain, "no trade was paid"),
        ("no-trade", draw_price, "no trade was paid"),
        ("no-trade", draw_gas, "no transaction"),
        ("empty", draw_learning, "no epoch was finished"),
        ("empty", draw_differences, "no two arms to compare"),
        ("empty", draw_lost, "no trade was possible"),
        ("free", draw_price, "every trade was free of charge"),
    ],
)
def test_an_empty_plot_says_why(sample: str, drawing: object, words: str) -> None:
    assert callable(drawing)
    assert words in said(drawing(as_written(SAMPLES[sample]())))


def test_the_matrix_says_who_bought_how_often_for_how_much() -> None:
    report = as_written(make_report(seeds=1, epochs=8, arms=("out-of-market", "aligned")))
    report["trades"] = [
        trade for trade in report["trades"] if trade["buyer"] == "A" or trade["round"] == 1
    ]
    figure = draw_matrix(report)
    bought = [t for t in report["trades"] if (t["buyer"], t["seller"]) == ("A", "B")]
    paid = sum(int(trade["price"]) for trade in bought) / 10**18
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array())[0, 1] == pytest.approx(paid)  # row A, column B
    cell = next(t for t in figure.axes[0].texts if t.get_position() == (1, 0))
    assert cell.get_text().startswith(f"{len(bought)} trades\n")
    assert float(cell.get_text().split("\n")[1]) == pytest.approx(paid, rel=0.01)
    assert "total paid (play-ether)" in said(figure)


def test_amounts_too_small_for_ether_have_a_smaller_unit() -> None:
    report = make_report(seeds=1, epochs=8, arms=("out-of-market", "aligned"))
    for trade in report["trades"]:
        trade["price"] = "37"
    figure = draw_price(as_written(report))
    assert "price of a trade (wei)" in said(figure)
    assert "total paid (wei)" in said(draw_matrix(as_written(report)))


def test_free_trades_are_counted_instead_of_paid() -> None:
    report = as_written(make_report(seeds=1, epochs=8, priced=False))
    assert "trades" in said(draw_matrix(report))


def test_the_lost_trades_add_up_to_all_that_were_possible() -> None:
    report = as_written(make_report(seeds=2, epochs=12, cut_at=(1, "aligned", 8)))
    axes = draw_lost(report).axes[0]
    ends: dict[float, float] = {}
    for bar in axes.patches:
        x0, y0, width = bar.get_x(), bar.get_y(), bar.get_width()  # type: ignore[attr-defined]  # rectangles
        ends[y0] = max(ends.get(y0, 0), x0 + width)
    assert list(ends.values()) == pytest.approx([100.0] * 3)
    assert "not played" in said(draw_lost(report))


def test_a_gain_is_drawn_above_the_bound_that_let_it_pass() -> None:
    report: Report = make_report(seeds=1, trades_kept=1)
    (trade,) = report["trades"]
    figure = draw_gain(as_written(report))
    stroke, dots = figure.axes[0].collections
    assert trade["gain"] is not None
    assert trade["bound"] is not None
    low, high = np.asarray(stroke.get_paths()[0].vertices)[:, 1]
    assert (low, high) == pytest.approx((100 * trade["bound"], 100 * trade["gain"]))
    assert np.asarray(dots.get_offsets())[0][1] == pytest.approx(100 * trade["gain"])


def test_a_protocol_without_a_bound_draws_gains_alone() -> None:
    report = make_report(seeds=1, epochs=8)
    for trade in report["trades"]:
        trade["bound"] = None
    assert "its bound" not in said(draw_gain(as_written(report)))


# ── foreign text ──


def test_a_hostile_name_is_drawn_as_text_and_not_obeyed() -> None:
    figure = draw_learning(as_written(hostile_report()))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0].startswith("<script>")
    assert titles[2].startswith("$\\frac")
    assert all(len(title) <= 24 for title in titles)


def test_what_the_font_cannot_draw_becomes_a_box() -> None:
    assert label("市場") == "□□"
    assert label("plain") == "plain"


# ── layout and colour ──


@given(st.lists(st.floats(0, 0.98), max_size=12), st.floats(0.01, 0.08))
def test_labels_keep_their_order_and_their_distance(heights: list[float], gap: float) -> None:
    placed = spread(heights, gap)
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    in_order = [placed[place] for place in order]
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(in_order))
    assert all(height <= 0.98 + 1e-9 for height in placed)


def test_labels_that_have_room_stay_where_their_lines_end() -> None:
    assert spread([0.1, 0.9, 0.5], 0.1) == pytest.approx([0.1, 0.9, 0.5])


# Machado, Oliveira and Fernandes 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
HUE_TURNED = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def in_the_dark(colour: np.ndarray) -> np.ndarray:
    """What the page's filter makes of a colour: invert(0.91), then hue-rotate(180deg)."""
    turned: np.ndarray = np.clip(HUE_TURNED @ (0.91 - 0.82 * colour), 0, 1)
    return turned


def linear(colour: np.ndarray) -> np.ndarray:
    light: np.ndarray = np.where(
        colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4
    )
    return light


def lab(light: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(light, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    lights = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear(c))) for c in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("colours", "least"), [(ARM_COLOURS, 13), (FATE_COLOURS, 10)])
def test_colours_are_told_apart_by_the_colour_blind_too(
    colours: dict[str, str], least: float, dark: bool, vision: str
) -> None:
    seen = [in_the_dark(rgb(c)) if dark else rgb(c) for c in colours.values()]
    points = [lab(VISION[vision] @ linear(colour)) for colour in seen]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(points, 2))
    assert nearest > least


@pytest.mark.parametrize("dark", [False, True])
def test_the_arms_names_are_read_on_their_paper(dark: bool) -> None:
    paper = in_the_dark(rgb("#ffffff")) if dark else rgb("#ffffff")
    for colour in ARM_COLOURS.values():
        seen = in_the_dark(rgb(colour)) if dark else rgb(colour)
        assert contrast(seen, paper) >= 4.5
