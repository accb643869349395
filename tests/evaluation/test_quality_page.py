"""The page of a quality benchmark."""

import re
from itertools import pairwise

import numpy as np
import pytest

from cdiff.evaluation.quality_page import render
from cdiff.evaluation.quality_words import doubts, verdict
from cdiff.evaluation.report import Picture


def _difference(arm, minus, mean, low, high, metric="pixel_ap", objects=7):
    told = {"metric": metric, "arm": arm, "minus": minus, "mean": mean, "low": low, "high": high}
    return told | {
        "objects": objects,
        "by_split": {"0": mean + 0.015, "1": mean - 0.015},
        "splits_differ": False,
    }


def _arm(value):
    names = ("pixel_ap", "mdice", "f1_max", "iou")
    return {key: [value, value + 0.02] for key in names} | {"image_auroc": [None, None]}


@pytest.fixture
def result():
    return {
        "looked_at": "test",
        "seeds": [0, 1],
        "splits": [0, 1],
        "splits_to_come": [],
        "split_hashes": {"0": "abc"},
        "a_seed_redraws": "start weights",
        "arms": {"real_only": _arm(0.1), "undirected": _arm(0.2), "wasm": _arm(0.3)},
        "pairs": {"real_only": [0, 0], "undirected": [50, 50], "wasm": [50, 48]},
        "comparisons": [
            _difference("wasm", "real_only", 0.2, 0.1, 0.3),
            _difference("wasm", "undirected", 0.1, -0.02, 0.2),
            _difference("undirected", "real_only", 0.1, -0.02, 0.2),
            _difference("wasm", "real_only", 0.1, 0.02, 0.2, "type:metal/<pit>"),
            _difference("wasm", "real_only", 0.123, 0.123, 0.123, "type:metal/rare", 1),
        ],
        "gain_ratio": 2.0,
        "power": {
            "pixel_ap": {"sd_of_real_only": 0.01, "smallest_detectable": {"5": 0.02, "8": float("nan")}}
        },
        "curve": [{"seed": 4, "steps": [400, 470], "pixel_ap": [0.612, 0.613], "mdice": [0.5, 0.51]}],
        "rise": {"pixel_ap": {"compared": {"mean": 0.001, "low": -0.1}, "further": None}},
        "negative_control": {
            **_difference("wasm", "real_only", 0.0, -0.1, 0.1),
            "holds_zero": True,
            "others": [_difference("undirected", "real_only", 0.033, 0.01, 0.05)],
            "level": {"real_only": 0.25, "undirected": 0.283, "wasm": 0.25},
            "level_at_random": 0.05,
            "says_something": True,
        },
        "verdicts": {"real_only": {}, "wasm": {"kept": [50, 48], "not visible": [7, 9]}},
        "fidelity": {"real_only": {"label_iou": None}, "wasm": {"label_iou": 0.8}},
        "command": "python jobs/benchmark.py quality",
    }


def test_the_verdict_names_whom_the_aimed_pairs_beat_and_from_whom_they_cannot_be_told(result):
    told = verdict(result)
    assert (
        "better than real only" in told and "not told apart from undirected" in told and "worse" not in told
    )
    result["comparisons"][0] |= {"low": -0.3, "high": -0.1}
    assert "worse than real only" in verdict(result)


def test_targets_of_one_source_object_are_doubted_though_an_interval_excludes_zero(result):
    assert doubts(result) == [], "a rare type alone is no doubt about the mean"
    for found in result["comparisons"]:
        found["objects"] = 1
    (told,) = doubts(result)
    assert "one source object" in told and "--groups" in told


def test_one_seed_or_one_split_is_doubted_and_its_intervals_are_called_what_they_are(result):
    assert "over 2 seeds" in verdict(result) and "over seeds and source objects" in verdict(result)
    result["splits"] = [0, 0]
    (told,) = doubts(result)
    assert "one split" in told and "--splits 0 1" in told
    result |= {"seeds": [0], "splits": [0]}
    (told,) = doubts(result)
    assert "one seed" in told and "--seeds 0 1 2 3 4" in told
    assert "with one seed" in verdict(result) and "intervals over source objects)" in verdict(result)


def test_arms_whose_pairs_ran_out_are_named(result):
    result["pairs_wanted"] = 48
    assert doubts(result) == []
    result["pairs"] |= {"copy_paste": [50, 20], "mined_B0": [9, 9]}
    result["pairs_wanted"] = 50
    (told,) = doubts(result)
    assert "50 are wanted" in told and "copy paste 20" in told and "wasm 48" in told
    assert "real" not in told and "mined" not in told and "wasm.pool" in told
    result["pairs"]["copy_paste"] = [0, 0]
    assert "copy paste 0" in doubts(result)[0] and "is real photos alone" in doubts(result)[0]


def test_splits_of_the_same_photos_are_one(result):
    result["splits_of_equal_photos"] = [0, 1]
    (told,) = doubts(result)
    assert "splits 0, 1 have the same photos" in told and "data.train_images" in told


def test_one_seed_and_one_object_tell_nothing_apart(result):
    for found in result["comparisons"]:
        found |= {"low": found["mean"], "high": found["mean"], "objects": 1}
    assert "better" not in verdict(result) and "not told apart from real only" in verdict(result)
    forests = render("quality-x", result).split("Differences")[1].split("By split")[0]
    assert 'class="hollow"' in forests and 'class="after"' not in forests


def test_a_rise_of_one_seed_is_told_as_such(result):
    result["rise"]["pixel_ap"]["compared"] = {"mean": 0.06, "low": None}
    (told,) = doubts(result)
    assert "+0.060" in told and "one seed" in told


def test_the_page_shows_arms_differences_and_what_can_be_told(result):
    html = render("quality-x", result, [Picture(np.zeros((4, 4, 3), np.uint8), "pairs of one arm")])
    for text in (
        "0.310 ± 0.014",
        "+0.200 [+0.100, +0.300]",
        "2.0 times",
        "The interval includes zero",
        "0.283",
        "+0.085",
        "not visible",
        "pairs of one arm",
        "0.020",
        "seed 4, 470 steps: 0.613",
    ):
        assert text in html, text
    assert "metal/&lt;pit&gt;" in html and "<pit>" not in html  # names of folders are no markup
    assert "image AUROC" not in html  # undefined everywhere
    assert "nan" not in html


def test_differences_can_be_read_without_seeing_the_chart(result):
    html = render("quality-x", result)
    told = html.split("As a table")[1].split("</details>")[0]
    assert "wasm − real only" in told and "[+0.100, +0.300]" in told and '<th scope="col"' in told
    assert 'aria-label="Difference in pixel AP, with 95 % intervals' in html


def test_what_is_measured_in_a_generators_own_features_is_told_by_split(result):
    result["fidelity"]["wasm"] |= {"kid": 2.0, "coverage": None}
    result["fidelity"]["real_only"] |= {"kid": None, "coverage": None}
    html = render("quality-x", result)
    assert ">2.000</td>" in html, "files of earlier versions have means alone"
    assert "distance of made to real targets" in html and "share of real targets" not in html, (
        "what is shown is explained"
    )
    result["fidelity_by_split"] = {
        "wasm": {"0": {"kid": 1.5, "label_iou": 0.7}, "1": {"kid": 2.5, "label_iou": 0.9}}
    }
    html = render("quality-x", result)
    assert "1.500 · 2.500" in html and "0.800" in html


def test_a_page_of_real_photos_alone_says_that_nothing_was_aimed(result):
    result |= {"comparisons": [], "power": None, "negative_control": None, "gain_ratio": None}
    assert "No aimed arm was measured" in render("quality-x", result)


def test_the_page_says_what_speaks_against_a_difference(result):
    assert doubts(result) == []
    result["rise"]["pixel_ap"]["compared"] = {"mean": 0.045, "low": 0.02}
    result["comparisons"][1] |= {"by_split": {"0": 0.04, "1": -0.02}, "splits_differ": True}
    result["splits_to_come"] = [2]
    waiting, rising, turning = doubts(result)
    assert "split 2 is still to come" in waiting
    assert "by +0.045 pixel AP over the fit that is compared:" in rising and "downstream.base_steps" in rising
    assert "wasm − undirected (+0.040, -0.020)" in turning and "wasm − real only" not in turning
    for told in (waiting, rising, turning):
        assert told[1:] in render("quality-x", result)


def test_what_further_fits_gain_is_told_beside_a_rise_and_does_not_hide_it(result):
    """Two seeds that ran on cannot take back what six saw."""
    result["rise"]["pixel_ap"]["compared"] = {"mean": 0.045, "low": 0.02}
    result["rise"]["pixel_ap"]["further"] = {"mean": 0.03, "low": -0.06, "seeds": [0, 1]}
    (rising,) = doubts(result)
    assert "and by +0.030 over all fits after it (seeds 0, 1)" in rising
    result["rise"]["pixel_ap"]["compared"]["low"] = -0.001
    assert doubts(result) == []
    result["rise"]["pixel_ap"]["further"]["low"] = 0.01
    assert len(doubts(result)) == 1
    result["rise"] = None  # without real photos alone
    assert doubts(result) == []


def test_a_metric_that_a_seed_lacks_is_left_out_of_the_curve(result):
    result["curve"].append({"seed": 9, "steps": [400, 470], "pixel_ap": [None, 0.4], "mdice": [0.1, 0.2]})
    html = render("quality-x", result)
    assert "seed 9, 470 steps: 0.200" in html and "seed 9, 470 steps: 0.400" not in html


def test_a_control_that_cannot_fail_is_not_called_held(result):
    result["negative_control"] |= {"says_something": False, "level_at_random": 0.2}
    html = render("quality-x", result)
    assert "it says nothing here" in html and "includes zero" not in html


def test_labels_of_lines_that_end_together_can_be_read(result):
    """Five seeds whose last changes are a thousandth apart."""
    result["curve"] = [
        {"seed": n, "steps": [400, 470], "pixel_ap": [0.6, 0.61 + n / 1000], "mdice": [0.5, 0.5]}
        for n in range(5)
    ]
    labels = re.findall(r'<text x="([\d.]+)" y="([-\d.]+)">([-+.\d]+)</text>', render("x", result))
    heights = sorted(float(y) for _, y, shown in labels if shown.startswith("+0.01"))
    assert len(heights) == 5
    assert min(b - a for a, b in pairwise(heights)) >= 11.9


def test_a_type_of_one_object_has_no_interval(result):
    html = render("quality-x", result, [])
    assert "+0.020, +0.200" in html and "+0.123, +0.123" not in html
