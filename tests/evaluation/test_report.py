"""The report: one page that needs nothing else, says what the numbers say, and trusts no text that it shows."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cdiff.evaluation.report import Picture, ReportContent, render, write_report
from cdiff.types import Decision, Gain, RoundResult, Slice, Weakness

EVIL = "<script>alert('x')</script>\" onload=\"x"


def scores(value: float | None) -> dict:
    row = {
        "pixel_ap": value,
        "f1_max": value,
        "auroc": 0.9,
        "aupro": value,
        "iou": value,
        "mdice": None,
        "photos": 7,
    }
    return {
        **dict.fromkeys(("pixel_ap", "f1_max", "auroc", "aupro", "iou", "mdice", "miou"), value),
        "image_auroc": None,
        "iou_threshold": 0.4,
        "per_type": {"metal/crack": row, f"metal/{EVIL}": row},
        "undefined": {"image_auroc": "no normal photo to tell from the others"},
    }


def result(number: int, accepted: bool, gain: float = 0.012) -> RoundResult:
    weakness = tuple(
        Weakness(Slice("metal", kind, "small"), ("a", "b"), 0.7, 0.3, 0.9, score)
        for kind, score in (("pit", 0.25), ("crack", 0.75), (EVIL, 0.5))
    )
    counts = (("metal/crack", "kept", 5), ("metal/crack", "blurred", 2), ("metal/pit", "kept", 1))
    decision = Decision(
        accepted, "the reason", gain if accepted else -0.012, -0.05, 0.034, 0.6 if gain > 0 else 0.1
    )
    alarms = (Weakness(Slice("metal"), ("n1", "n2", "n3"), 0.7, 0.3, 0.0, 0.625),)
    scores = (("pixel_ap", 0.3),)
    return RoundResult(number, weakness, alarms, 6, counts, "rev", scores, decision, (("fit", 2.0),))


@pytest.fixture
def content() -> ReportContent:
    picture = Picture(np.full((20, 30, 3), (200, 30, 30), np.uint8), f"caption {EVIL}")
    return ReportContent(
        title=f"run {EVIL}",
        before=scores(0.25),
        after=scores(0.5),
        real_only={"pixel_ap": 0.2},
        rounds=(result(1, True), result(2, False)),
        best=(picture,),
        worst=(picture,),
        kept=(picture, picture),
        turned_away=(Picture(np.zeros((8, 8), np.uint8), "blurred"),),
        data={"photos": EVIL},
        config={"generator.steps": 1500},
        seconds={"fit": 30.0, "generate": 95.0, "train": 3700.0},
        reproduce=(f"python jobs/loop.py {EVIL}",),
        notes=("type metal/hole is not scored",),
    )


class Page(HTMLParser):
    """Collects what the tests ask for, and checks that every element is closed."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words += data


def test_the_page_is_self_contained_and_runs_nothing(content, tmp_path):
    html = write_report(tmp_path / "report" / "index.html", content).read_text()
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in page.tags if tag == "img")
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html).replace("http-equiv", "")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_every_text_is_escaped_and_still_readable(content):
    html = render(content)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 8  # title, type, slice, captions, data, command
    assert EVIL in Page(html).words


def test_gains_name_the_probe_or_the_round_that_measured_them(content):
    first, second = (
        dataclasses.replace(content.rounds[0], gains=(Gain("pit", 0.7, 40, 5, 0.02, 0.01),)),
        content.rounds[1],
    )
    probed = (Gain("pit", 0.5, 24, 5, -0.03, 0.02),)
    html = render(dataclasses.replace(content, probed=probed, rounds=(first, second)))
    table = html[html.index("What pairs brought") :]
    assert re.search(r"<td[^>]*>probe</td>.*<td[^>]*>1</td>", table, re.S), "in their order"
    assert "-0.030" in table.replace("\u2212", "-") and "+0.020" in table
    assert "What pairs brought" not in render(content), "nothing measured"


def test_pictures_are_inside_the_page_with_their_captions(content):
    page = Page(render(content))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 5
    data = base64.b64decode(pictures[0]["src"].split(",", 1)[1])
    image = np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)))
    assert image.shape == (20, 30, 3)
    assert np.abs(image[10, 10].astype(int) - (200, 30, 30)).max() < 12
    assert pictures[0]["alt"] == f"caption {EVIL}"


def test_the_headline_says_what_the_numbers_say(content):
    assert "rose from 0.250 to 0.500 with the pairs of round 1 of 2" in Page(render(content)).words
    worse = dataclasses.replace(content, before=content.after, after=content.before)
    words = Page(render(worse)).words
    assert "fell from 0.500 to 0.250" in words
    assert "-0.250" in words
    level = dataclasses.replace(content, before=scores(0.71911), after=scores(0.71939))
    assert "pixel AP stayed at 0.719 with" in Page(render(level)).words
    none = dataclasses.replace(content, rounds=(result(1, False), result(2, True, -0.01)))
    words = Page(render(none)).words
    assert "No round's model was kept" in words
    # its pairs are trained on, its own model is not kept
    assert '<span class="badge ">accepted</span>' in render(none)
    later = dataclasses.replace(content, rounds=(result(1, True), result(2, True, -0.01)))
    assert "with the pairs of round 1 of 2" in Page(render(later)).words
    undefined = dataclasses.replace(content, after=scores(None))
    assert "undefined" in Page(render(undefined)).words


def test_the_headline_claims_no_more_than_its_interval(content):
    def told(low: float | None, high: float | None) -> str:
        ahead: dict = {"real_only": {"gain": 0.25, "low": low, "high": high}}
        return Page(render(dataclasses.replace(content, ahead=ahead))).words

    end = "with the pairs of round 1 of 2 (95 % interval of the change over source objects"
    assert f"{end} -0.100 to +0.600): chance alone may explain it." in told(-0.1, 0.6)
    assert f"{end} +0.100 to +0.400)." in told(0.1, 0.4)
    assert "to 0.500 with the pairs of round 1 of 2." in told(None, None)


def test_a_rival_of_copies_stands_beside_with_intervals(content):
    plain = Page(render(content)).words
    assert "copies" not in plain and "95 % interval0" not in plain
    ahead = {
        "real_only": {"gain": 0.25, "low": 0.1, "high": 0.4},
        "copy_paste": {"gain": 0.05, "low": -0.03, "high": 0.12},
    }
    words = Page(
        render(dataclasses.replace(content, rival=scores(0.45), pairs=90, copies=88, ahead=ahead))
    ).words
    assert "88 pasted copies of real targets in place of its 90 pairs reach 0.450." in words
    assert "real photos alone+0.250+0.100 to +0.400" in words
    assert "pasted copies of real targets+0.050-0.030 to +0.120" in words
    assert "0.2500.500+0.2500.450mean over types" in words, "metric, before, after, change, copies"


def test_copies_that_were_not_kept_are_told_beside_the_numbers_that_stand_in(content):
    told = dataclasses.replace(content, rival=content.before, pairs=90, copies=88, copies_stand=False)
    words = Page(render(told)).words
    assert "88 pasted copies of real targets in place of its 90 pairs were not kept on validation" in words
    assert "real photos alone stand in for them" in words and "reach 0.250" not in words


def test_before_the_test_split_is_read_the_page_tells_of_the_rounds_alone(content):
    early = dataclasses.replace(content, before={}, after={}, best=(), worst=(), asked=5)
    words = Page(render(early)).words
    assert "2 of 5 rounds are done" in words and "The test split is read after the last one" in words
    assert "Before and after" not in words and "Predictions on the test split" not in words
    assert (
        "Round by round" in words and "Generated pairs" in words and "Where the segmenter was weak" in words
    )


def test_undefined_values_are_dashes_with_their_reason(content):
    words = Page(render(content)).words
    assert "image_auroc: no normal photo to tell from the others" in words
    assert "None" not in words
    assert "nan" not in words.lower().replace("finan", "")


def test_rounds_show_decision_interval_and_reason(content):
    words = Page(render(content)).words
    for badge in ('<span class="badge up">kept</span>', '<span class="badge down">rejected</span>'):
        assert badge in render(content)
    for text in ("0.600", "-0.050 to +0.034", "the reason", "real only"):
        assert text in words


def test_what_one_object_decides_has_no_interval(content):
    """Neither on the test split nor in a round; a chart of such rounds alone shows no whiskers."""
    bare = tuple(
        dataclasses.replace(r, decision=dataclasses.replace(r.decision, low=None, high=None))
        for r in content.rounds
    )
    ahead: dict = {"real_only": {"gain": 0.25, "low": None, "high": None}}
    html = render(dataclasses.replace(content, ahead=ahead, rounds=bare))
    words = Page(html).words
    assert "real photos alone+0.250–" in words and "+0.012–0.600" in words
    assert "None" not in words and "whisker" not in html.partition("</style>")[2]
    assert "whisker" in render(dataclasses.replace(content, rounds=(*bare, result(3, True))))


def test_counts_are_summed_over_rounds_by_slice_and_reason(content):
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", render(content))
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert ["metal/crack", "10", "4", "14"] in cells
    assert ["metal/pit", "2", "", "2"] in cells
    assert ["all", "12", "4", "16"] in cells


def test_weaknesses_are_ranked_weakest_first(content):
    words = Page(render(content)).words
    assert words.index("metal/crack/small") < words.index("metal/pit/small")


def test_false_alarms_on_normals_are_told_by_category(content):
    told = "metal: the highest score on a photo without a target is 0.62, mean of 3 photos"
    assert told in Page(render(content)).words


def test_times_are_readable_and_summed(content):
    words = Page(render(content)).words
    for text in ("30.0 s", "1 min 35 s", "1 h 01 min", "1 h 03 min"):
        assert text in words


def test_an_empty_run_still_gives_a_page():
    empty = {"per_type": {}, "undefined": {"pixel_ap": "no photo with targets"}}
    page = Page(render(ReportContent("nothing", empty, empty)))
    assert "no photo with targets" in page.words
    assert "Round by round" not in page.words


def test_charts_bear_equal_many_and_extreme_values(content):
    results = tuple(
        dataclasses.replace(
            result(number, True),
            validation=(("pixel_ap", value),),
            decision=Decision(True, "", value, value, value, 0.5),
        )
        for number, value in enumerate([0.0, 0.0, 1e-9, 1.0] * 10, start=1)
    )
    for rounds in (results, results[:1], results[:2]):
        html = render(dataclasses.replace(content, rounds=rounds))
        Page(html)
        assert not re.search(r'"(nan|-?inf)', html)
