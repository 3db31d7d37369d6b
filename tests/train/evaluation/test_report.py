"""The report in a real browser: what it shows, in every light, with no other file."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.images.class_colours import colour_of
from tests.browser import CHROMIUM, Browser, start_browser
from train import evaluate, show
from train.evaluation.overlays import make_overlay
from train.evaluation.report import in_words, report_page, story
from train.runs.history import Restart
from train.runs.run_folder import Run, read_run

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install)")

TISSUE = (200, 120, 160)
SCORES = {"accuracy": 0.9125, "iou": 0.5, "dice": 0.66667, "precision": 0.75, "recall": 0.6}


def summary_of(interval: list[float] | None, **more: Any) -> dict[str, Any]:
    """A summary of three fields."""
    nuclei = {"precision": None, "recall": None, "f1": None, "average_precision": None}
    source = {
        "all_pixels": SCORES,
        "all_pixels_interval": dict.fromkeys(SCORES, interval),
        "detection": {
            **nuclei,
            "radius_px": 20,
            "threshold": 0.45,
            "threshold_chosen_on": "default",
            "interval": {"f1": None},
            "per_class": {"tumor": nuclei},
        },
        "mean_over_fields": {
            name: {"mean": value, "num_fields": 3, "interval": interval}
            for name, value in SCORES.items()
        },
    }
    fields = [f"Case_4-{number:02d}" for number in (1, 2, 3)]
    return {
        "run": "first",
        "checkpoint": "step_00000008",
        "step": 8,
        "epoch": 2,
        "data": {"split": "test"},
        "threshold": {"value": 0.5, "chosen_on": "default"},
        "num_fields": len(fields),
        "cases": ["Case_4"],
        **source,
        "bootstrap": {"over": "cases", "resamples": 2000, "confidence": 0.95},
        "per_class": {"tumor": SCORES},
        "per_case": [
            {"case": "Case_4", "num_fields": 3, "dice": SCORES["dice"], "nuclei_f1": None}
        ],
        "per_field": [{"field": name, "case": "Case_4", **SCORES} for name in fields],
        "baselines": {"otsu_hematoxylin": source, "all_foreground": source},
        "empty_rule": "empty is 1",
        "warnings": [],
        "near_duplicates": {"not_checked": "moved"},
        "model_sha256": "ab" * 32,
        **more,
    }


WHOLE = summary_of(
    [0.61, 0.72],
    threshold={"value": {"tumor": 0.45, "mitosis+apoptosis": 0.1}, "chosen_on": "val"},
    warnings=["trained on: <b>Case_4</b> & others"],
    per_class={"tumor": SCORES, "mitosis+apoptosis": SCORES},
    sensitivity=[{"radius_px": radius, "dice": 0.5} for radius in (10, 15, 20, 25, 30)],
    agreement=[{"fields": ["Case_4-01", "Case_4-02"], "dice": 0.5939}],
    near_duplicates={"max_bits": 10, "num_training_fields": 4, "found": []},
    detection={
        "radius_px": 20,
        "threshold": {"tumor": 0.35, "mitosis+apoptosis": 0.2},
        "threshold_chosen_on": "val",
        "precision": 0.8,
        "recall": 0.7,
        "f1": 0.7467,
        "average_precision": 0.71,
        "interval": {"f1": [0.7, 0.79]},
        "per_class": {
            "tumor": {"f1": 0.75, "precision": 0.8, "recall": 0.7, "average_precision": 0.71}
            | {"annotated": 30, "predicted": 26},
            "mitosis+apoptosis": dict.fromkeys(
                ("f1", "precision", "recall", "average_precision"), None
            )
            | {"annotated": 0, "predicted": 7},
        },
        "curve": {
            "threshold": [0.9, 0.45, 0.1],
            "precision": [1, 0.8, 0.4],
            "recall": [0.2, 0.7, 1],
        },
    },
)


@pytest.fixture
def run(own_run: Path) -> Run:
    """A run that was requeued and went on."""
    restart = {"step": 4, "time_s": 1764042000, "notes": ["resumed from step_00000004 (step 4)"]}
    (own_run / "restarts.jsonl").write_text(json.dumps(restart) + "\n")
    (own_run / "launch").mkdir()
    events = [
        {"time_s": 1764041000.5, "event": "queued", "stage": "chain", "jobs": {"train": "3"}},
        {"time_s": 1764041900.0, "event": "requeued", "stage": "train", "step": 4}
        | {"reason": "preempted", "job": "3", "nodes": "n[1-2]"},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (own_run / "launch" / "events.jsonl").write_text(lines + '{"time_s": 17640')
    return read_run(own_run)


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Path:
    """A report with everything in it."""
    image_HWC = np.full((300, 400, 3), TISSUE, np.uint8)
    truth_HW = np.zeros((300, 400), bool)
    truth_HW[20:280, 20:60] = True
    predicted_HW = np.zeros((300, 400), bool)
    predicted_HW[20:280, 200:300] = True
    nothing = np.zeros_like(truth_HW)
    masks = np.stack([truth_HW, nothing]), np.stack([nothing, predicted_HW])
    overlays = [
        make_overlay(number, f"Case_4-{number:02d}", "Case_4", 0.5, image_HWC, *masks)
        for number in (1, 2)
    ]
    path = tmp_path / "report.html"
    path.write_text(report_page(WHOLE, overlays, [run]))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def text_of(html: str) -> str:
    """What a reader sees of a page, with single spaces."""
    body = re.sub(r"(?s)<style>.*?</style>|<[^>]+>", " ", html)
    return " ".join(body.split())


def test_the_page_says_what_the_summary_and_the_run_say(page: Path, run: Run) -> None:
    text = text_of(page.read_text())
    for words in (
        "Evaluation of first",
        "threshold tumor 0.45, mitosis+apoptosis 0.1, chosen on val",
        "0.667 0.610 to 0.720",
        "mitosis+apoptosis 0.667",
        "All foreground 0.667",
        "tumor 0.750 0.800 0.700 0.710 30 26",
        "mitosis+apoptosis nothing annotated 0 7",
        "All other figures pool the classes",
        "Model 0.747 0.700 to 0.790 0.800",
        "30 0.500",
        "Case_4-01, Case_4-02 0.594",
        "2025-11-25 03:38:20 train requeued 4 preempted; job 3, nodes n[1-2]",
        "2025-11-25 03:40:00 training went on 4 resumed from step_00000004 (step 4)",
        "jobs (train 3)",
        "1 restart of the training",
        "step_00000008: step 8, epoch 2",
        "ab" * 32,
        run.data.content_sha256,
        "batch_size 4",
        "none among 4 training fields",
    ):
        assert words in text, words


def test_warnings_come_first_and_names_are_no_markup(page: Path) -> None:
    html = page.read_text()
    assert "&lt;b&gt;Case_4&lt;/b&gt; &amp; others" in html
    assert html.index('id="warnings"') < html.index('class="figures"')


def test_sections_without_anything_to_say_are_left_out(run: Run) -> None:
    for name in ("restarts.jsonl", "metrics.jsonl", "launch/events.jsonl"):
        (run.path / name).unlink()
    html = report_page(summary_of(None), [], [run])
    text = text_of(html)
    for words in ("Warnings", "Worst", "annotated twice", "What happened"):
        assert words not in text
    # trained without a validation split, it still has a training loss
    assert re.findall('alt="(Curves.*?)"', html) == ["Curves: training loss"]
    assert "Near-duplicates not looked for" in text
    assert "No restarts of the training" in text
    assert "0.667 one case" in text


def test_the_curves_are_those_of_the_run_and_of_detection(page: Path) -> None:
    assert re.findall('alt="(Curves.*?)"', page.read_text()) == [
        "Curves: precision and recall of nuclei",
        "Curves: training loss, validation loss, validation scores",
    ]


def test_the_page_is_the_same_each_time(run: Run) -> None:
    assert report_page(WHOLE, [], [run]) == report_page(WHOLE, [], [run])


def test_evaluation_writes_it_with_the_digest_that_show_prints(
    own_run: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "results"
    assert cli(evaluate.main, f"run={own_run}", f"out={out}", "amp=off", "figures=1").code == 0
    html = (out / "report.html").read_text()
    shown = cli(show.main, f"run={own_run}", "checkpoint=best").out
    (digest,) = re.findall(r"model sha256  ([0-9a-f]{64})", shown)
    assert digest in html
    per_field = json.loads((out / "summary.json").read_text())["per_field"]
    ordered = sorted(per_field, key=lambda entry: entry["dice"])
    shown_fields = re.findall(r"<strong>(Case_\S+)</strong> Dice ([\d.]+)", html)
    # one of the worst and one of the best
    assert shown_fields == [
        (entry["field"], f"{entry['dice']:.3f}") for entry in (ordered[0], ordered[-1])
    ]


def test_the_story_is_told_in_order_of_time() -> None:
    restarts = [Restart(step=4, time_s=20, notes=["a", "b"])]
    events = [{"time_s": 10.5, "event": "failed", "stage": "train", "step": 4, "reason": "why"}]
    told = [(row["time"], row["what"], row["details"]) for row in story(restarts, events)]
    assert told == [
        ("1970-01-01 00:00:10", "train failed", "why"),
        ("1970-01-01 00:00:20", "training went on", "a; b"),
    ]
    assert in_words({"jobs": {"train": 3}, "code": 0}) == "jobs (train 3), code 0"


@needs_browser
@pytest.mark.parametrize("width_px", [1280, 800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_shown_whole_without_a_complaint_or_a_request(
    width_px: int, scheme: str, page: Path, browser: Browser
) -> None:
    browser.look(width_px, scheme)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width_px
    cut_off = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{cut_off}.length") == 0


@needs_browser
def test_it_is_dark_where_the_reader_wants_it_dark(page: Path, browser: Browser) -> None:
    papers, contrasts = {}, {}
    for scheme in ("light", "dark"):
        browser.look(1280, scheme)
        browser.open(page)
        shot_HW = browser.screenshot().mean(axis=-1)
        left, top, right, bottom = browser.box("h1")
        papers[scheme] = shot_HW[0, 0]
        contrasts[scheme] = np.abs(shot_HW[top:bottom, left:right] - papers[scheme]).max()
    assert papers["light"] > 240
    assert papers["dark"] < 40
    assert min(contrasts.values()) > 150


@needs_browser
def test_outlines_are_switched_on_and_off(page: Path, browser: Browser) -> None:
    """Seen in the pixels where the truth's and the prediction's outlines run."""
    browser.look(1280)
    browser.open(page)

    def are_seen() -> list[bool]:
        """Whether there is more than tissue where truth's outline runs, and prediction's."""
        left, top, _, _ = browser.box(".overlay svg")
        row = browser.screenshot()[top + 150].astype(int)
        sides = [row[left + x - 3 : left + x + 4] for x in (20, 200)]
        return [bool(np.abs(side - TISSUE).max() > 40) for side in sides]

    def click(name: str) -> None:
        browser.value(f"document.querySelector('{name}').click()")

    assert are_seen() == [True, True]
    click("#show-truth")
    assert are_seen() == [False, True]
    click("#show-prediction")
    assert are_seen() == [False, False]
    click("#show-truth")
    assert are_seen() == [True, False]
    click("#show-prediction")
    click("#show-class-1")  # of the truth's outline
    assert are_seen() == [False, True]
    click("#show-class-2")
    assert are_seen() == [False, False]


@needs_browser
def test_outlines_and_legend_have_the_colours_of_the_classes(page: Path, browser: Browser) -> None:
    """Truth is of the first class, and 6 px wide; the prediction is of the second, in dark."""
    browser.look(1280)
    browser.open(page)
    left, top, _, _ = browser.box(".overlay svg")
    picture = browser.screenshot()
    row = picture[top + 150, left:]
    assert (row[18:23] == colour_of(0)).all()
    assert (row[200] == colour_of(1)).all()
    assert row[198].max() < 120
    for number in (0, 1):
        left, top, right, bottom = browser.box(f".swatch.class-{number + 1}")
        middle = picture[(top + bottom) // 2, (left + right) // 2]
        assert middle.tolist() == [*colour_of(number)]


def test_one_class_needs_no_legend(run: Run) -> None:
    html = report_page(summary_of(None), [], [run])
    assert "show-class" not in html
    assert "pool the classes" not in html


@needs_browser
def test_it_prints_on_paper_whatever_the_screen_is(page: Path, browser: Browser) -> None:
    browser.look(680, "dark", media="print")
    browser.open(page)
    assert browser.style("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("document.documentElement.scrollWidth") <= 680
    assert (
        browser.value("getComputedStyle(document.querySelector('#show-truth')).display") == "none"
    )
    assert browser.style("table", "breakInside") == "avoid"
    assert browser.style(".overlay svg", "maxHeight") == f"{112 / 25.4 * 96:.3f}px"
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    browser.look(1280, media="")
