"""The page in a real browser: what it shows, in every light, with no other file."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Browser, start_browser
from train.comparison.difference import Difference
from train.comparison.page import compare_page
from train.comparison.plots import MOST_POINTS, Series, axis, scatter, thin
from train.comparison.study import StudyResults, Trial
from train.comparison.table import read_table

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install)")
Write = Callable[..., Any]

DIFFERENCE = Difference("Dice of pixels", "<a>", "b", 0.02, (0.01, 0.03), 17)
STUDY = StudyResults(
    [
        Trial("trial-0", 0.5, {"lr": 0.001, "schedule": "<b>"}, is_pruned=False),
        Trial("trial-1", 0.6, {"lr": 0.01, "schedule": "cosine"}, is_pruned=True),
    ],
    frozenset(["lr"]),
    {"lr": 0.75, "schedule": 0.25},
)


@pytest.fixture
def page(write_run: Write, tmp_path: Path) -> Path:
    """A page of ten runs, of which two have no colour of their own."""
    paths = [write_run(f"<i>{n}", [0.1, 0.2 + n / 50, 0.3], f"lr=0.00{n + 1}") for n in range(10)]
    path = tmp_path / "compare.html"
    path.write_text(compare_page(read_table(paths, "test"), [DIFFERENCE], "", STUDY))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_page_says_what_the_table_says(page: Path) -> None:
    html = page.read_text()
    assert "Comparison of 10 runs" in html
    assert "&lt;a&gt;" not in html  # the second is the better one
    assert "b is better by 0.0200 (95% interval 0.0100 to 0.0300, 17 cases): a difference" in html
    rows = re.findall(r'<th scope="row"><span class="swatch (\w+)"></span>(.*?)</th>', html)
    assert rows[0] == ("c1", "&lt;i&gt;9")
    assert [style for style, _ in rows] == [*(f"c{n}" for n in range(1, 9)), "other", "other"]
    assert "the other 2" in html
    assert "<td>0.3800</td><td>2</td><td>0.1900</td>" in html
    assert "width: 75.0%" in html


def test_nothing_from_a_file_is_markup(page: Path) -> None:
    html = page.read_text()
    assert "<i>" not in html
    assert "<b>" not in html
    assert "<text" in html
    assert "&lt;b&gt;</text>" in html


def test_a_study_without_importances_says_why(write_run: Write) -> None:
    table = read_table([write_run("a", [0.5])], "test")
    html = compare_page(table, [], "why not", StudyResults(why_none="3 finished <trials>"))
    assert "No importances: 3 finished &lt;trials&gt;" in html
    assert "why not" in html
    assert "Importances by" not in html
    assert "drawn settings" not in compare_page(table, [], "", None)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_shown_whole_without_a_complaint_or_a_request(
    scheme: str, page: Path, browser: Browser
) -> None:
    browser.look(1280, scheme)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= 1280
    cut_off = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{cut_off}.length") == 0
    # curves: validation Dice and training loss; and a plot for each setting
    assert browser.value("document.querySelectorAll('svg').length") == 4
    assert browser.value("document.querySelectorAll('polyline').length") == 20
    paper, ink = (browser.style("body", name) for name in ("backgroundColor", "color"))
    assert (paper, ink) == {
        "light": ("rgb(255, 255, 255)", "rgb(29, 33, 37)"),
        "dark": ("rgb(20, 24, 28)", "rgb(228, 232, 236)"),
    }[scheme]


@needs_browser
def test_the_best_curve_is_in_its_colour_and_on_top(page: Path, browser: Browser) -> None:
    browser.look(1280)
    browser.open(page)
    assert browser.value("[...document.querySelectorAll('svg')[0].querySelectorAll('polyline')]"
                         ".map(line => line.getAttribute('class')).join(' ')") == (
        "other other c8 c7 c6 c5 c4 c3 c2 c1"
    )  # fmt: skip
    assert browser.style("polyline.c1", "stroke") == "rgb(0, 114, 178)"
    assert browser.style("polyline.other", "stroke") == "rgb(195, 201, 208)"


# Plots, worked out by hand


def test_axes() -> None:
    linear = axis([0, 100], 0, 1080)  # with 4% of room at each end
    assert linear.px(50) == pytest.approx(540)
    assert linear.px(0) == pytest.approx(40)
    assert [text for _, text in linear.ticks()] == ["0", "20", "40", "60", "80", "100"]
    logarithmic = axis([1e-4, 1e-2], 0, 1080, is_log=True)
    assert logarithmic.px(1e-3) == pytest.approx(540)
    assert [text for _, text in logarithmic.ticks()] == ["0.0001", "0.001", "0.01"]
    assert not axis([0, 1], 0, 100, is_log=True).is_log
    assert axis([3, 3], 0, 100).px(3) == pytest.approx(50)
    assert [text for _, text in axis([0.2, 0.5], 0, 100, is_log=True).ticks()] == [
        "0.2",
        "0.3",
        "0.5",
    ]


def test_a_curve_of_many_points_is_of_their_means() -> None:
    points = [(float(n), float(n % 2)) for n in range(4 * MOST_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert thinned[0] == (1.5, 0.5)
    assert thin(points[:3]) == points[:3]


def test_words_have_a_place_each() -> None:
    series = [Series([(0, dice)], "done", "") for dice in (0.1, 0.2, 0.3)]
    plot = scatter("schedule", ["b", "a", "b"], series, is_log=False)
    assert [word for _, word in plot.x_ticks] == ["a", "b"]
    places = {word: px for px, word in plot.x_ticks}
    drawn = [shape.points[0][0] for shape in reversed(plot.shapes)]
    assert drawn == [places["b"], places["a"], places["b"]]
