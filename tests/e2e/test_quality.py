"""The quality benchmark from photos to page, on real actors, with a tiny generator and tiny fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
ARMS = (
    "real_only",
    "again",
    "copy_paste",
    "perlin",
    "undirected",
    "wasm",
    "mined_B2",
    "wasm_ungated",
)


def _benchmark(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "quality", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=350,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def arguments(home, tiny_loop) -> list[str]:
    seeds = ["--seeds", "0", "1", "--splits", "0", "1", "--equal-compute", "0", "--most-fits", "3"]
    varied = ["--variant", "ungated", "gate.checks=false"]
    arms = [arm for arm in ARMS if not arm.startswith("wasm_")]
    return [
        *seeds,
        *varied,
        "--arms",
        *arms,
        "--out",
        str(home / "quality-tiny.json"),
        *tiny_loop,
        "wasm.pool=8",
        "wasm.probe_steps=0",  # it aims by validation photos, which are looked at first
    ]


@pytest.fixture(scope="module")
def looked(home, arguments) -> tuple[dict, list[set[str]]]:
    """The same arms on validation photos, before anything else: the object, and what each ledger then names."""
    out = str(home / "looked.json")
    done = _benchmark(home, "--look", "validation", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(Path(out).read_text())
    return found, [_names(home, name) for name in found["runs"]]


@pytest.fixture(scope="module")
def done(home, arguments, looked) -> subprocess.CompletedProcess[str]:
    return _benchmark(home, *arguments)


def _names(home: Path, run: str) -> set[str]:
    return {event.get("name", "") for event in Ledger(open_run(home / "runs" / run)).events()}


@pytest.fixture(scope="module")
def result(done, home) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "quality-tiny.json").read_text())


def test_every_arm_has_a_value_per_seed_and_as_many_pairs(result):
    assert tuple(result["arms"]) == ARMS
    assert result["seeds"] == [0, 1] and result["splits"] == [0, 1]
    for arm in ARMS:
        assert len(result["arms"][arm]["pixel_ap"]) == 2
        assert all(0 <= value <= 1 for value in result["arms"][arm]["pixel_ap"])
    for arm in ("copy_paste", "perlin", "undirected", "wasm"):
        assert result["pairs"][arm] == [8, 8]
    assert all(0 < number <= 8 for number in result["pairs"]["mined_B2"])
    assert result["pairs"]["real_only"] == [0, 0] and result["pairs_wanted"] == 8


def test_differences_are_those_of_the_arms(result):
    found = {(c["arm"], c["minus"]): c for c in result["comparisons"] if c["metric"] == "pixel_ap"}
    assert {minus for arm, minus in found if arm == "wasm"} >= {
        "real_only",
        "copy_paste",
        "perlin",
        "undirected",
    }
    for (arm, minus), comparison in found.items():
        mine, theirs = (result["arms"][name]["pixel_ap"] for name in (arm, minus))
        expected = [a - b for a, b in zip(mine, theirs, strict=True)]
        assert comparison["per_seed"] == pytest.approx(expected, abs=2e-3)
        assert comparison["low"] <= comparison["high"]
        assert comparison["by_split"] == pytest.approx({"0": expected[0], "1": expected[1]}, abs=2e-3)
    assert result["power"]["pixel_ap"]["smallest_detectable"]["8"] > 0
    control = result["negative_control"]
    assert set(control["level"]) == set(ARMS) and 0 < control["level_at_random"] < 0.5
    assert control["mean"] == pytest.approx(control["level"]["wasm"] - control["level"]["real_only"])


def test_all_arms_of_a_seed_go_on_from_one_base(result, home):
    ledger = Ledger(open_run(home / "runs" / result["runs"][0]))
    names = [event.get("name", "") for event in ledger.events()]
    assert sum(name.startswith("base:") for name in names) == 1  # seed 0 is on this split
    assert sum(name.startswith("fit:") for name in names) == len(ARMS)
    assert sum(name.startswith("fold:") for name in names) == 2
    scored = [name for name in names if name.startswith("weighed:test:")]
    models = len(ARMS) + 2  # those that ran on, too
    assert len(scored) == len(set(scored)) == models  # each reads it once


def test_the_page_and_mlflow_show_every_arm(result, done, home):
    html = (home / "reports" / "quality-tiny.html").read_text()
    assert "copy paste" in html and "data:image/" in html and str(home / "reports") in done.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "cdiff")
    runs = client.search_runs([experiment.experiment_id])
    told = {(r.data.params["arm"], r.data.params["seed"]): r for r in runs if "arm" in r.data.params}
    ran_on = {(f"{arm}_long", "0") for arm in ("real_only", "copy_paste")}
    assert set(told) == {(arm, str(seed)) for arm in ARMS for seed in range(2)} | ran_on
    shown = told["wasm", "1"].data.metrics
    assert {name.removeprefix("pairs/"): n for name, n in shown.items() if name.startswith("pairs/")} == {
        reason: numbers[1] for reason, numbers in result["verdicts"]["wasm"].items() if numbers[1]
    }
    value = told["wasm", "1"].data.metrics["test/pixel_ap"]
    assert value == pytest.approx(result["arms"]["wasm"]["pixel_ap"][1])


def test_variants_choose_from_the_same_pool_under_settings_of_their_own(result):
    assert result["pairs"]["wasm_ungated"] == [8, 8]
    assert result["variants"]["wasm_ungated"] == "gate.checks=false"
    assert result["fidelity"]["wasm_ungated"]["valid_share"] > result["fidelity"]["wasm"]["valid_share"]
    assert "wasm_ungated" in {c["minus"] for c in result["comparisons"] if c["arm"] == "wasm"}


def test_a_variant_that_would_change_the_pool_is_refused(home, arguments):
    told = _benchmark(home, *arguments, "--variant", "tokens", "safe.tokens=label")
    assert told.returncode == 2
    assert "safe.tokens" in told.stderr and "run of its own" in told.stderr and "Traceback" not in told.stderr


def test_without_a_base_the_remedy_is_named(home, arguments):
    told = _benchmark(home, *arguments, "downstream.base_steps=0")
    assert told.returncode == 2
    assert "downstream.base_steps" in told.stderr and "Traceback" not in told.stderr


def test_a_store_that_does_not_answer_is_told_before_anything_is_fitted(home, arguments):
    wanted = ["--tracking-uri", "http://127.0.0.1:9", "downstream.steps=5"]
    told = _benchmark(home, *arguments, *wanted)
    assert told.returncode == 2
    assert "MLflow at http://127.0.0.1:9" in told.stderr and "fitting" not in told.stderr


def test_fidelity_is_told_of_every_arm_with_stored_pairs(result):
    for arm in ("copy_paste", "undirected", "wasm"):
        assert 0 <= result["fidelity"][arm]["valid_share"] <= 1
        met = result["fidelity"][arm]["coverage"]
        assert met is None or 0 <= met <= 1  # so few real targets have no neighbourhoods
        assert 0 <= result["fidelity"][arm]["label_iou"] <= 1
        assert 0 < result["fidelity"][arm]["visible_share"] <= 1
        # every candidate has a verdict, and those that were kept are the pairs
        assert result["verdicts"][arm]["kept"] == result["pairs"][arm]
    assert result["fidelity"]["real_only"]["kid"] is None and result["verdicts"]["real_only"] == {}


def test_arms_without_a_generator_run_on_for_what_the_aimed_arm_costs(result):
    equal = result["equal_compute"]
    assert equal["seeds"] == [0] and set(equal["arms"]) == {"wasm", "real_only_long", "copy_paste_long"}
    seconds = result["seconds"]["0"]
    worth = 1 + max(1.0, seconds["aimed_extra"] / seconds["fit"])  # four digits of each are told
    assert equal["fits_of_equal_time"]["0"] == pytest.approx(worth, rel=0.01, abs=1)
    assert 2 <= equal["fits"]["0"] <= 3
    assert equal["arms"]["real_only_long"]["pixel_ap"] != result["arms"]["real_only"]["pixel_ap"][:1]
    assert {c["minus"] for c in equal["comparisons"]} == {"real_only_long", "copy_paste_long"}


def test_real_photos_alone_have_a_curve_over_steps(result):
    """From the base, over the fit that is compared, to the last of those that ran on."""
    lines = {row["seed"]: row for row in result["curve"]}
    assert set(lines) == {0, 1}
    base, steps = result["base_steps"], result["steps"]
    ran_on = result["equal_compute"]["fits"]["0"]
    assert lines[0]["steps"] == [base + n * steps for n in range(ran_on + 1)]
    assert lines[1]["steps"] == [base, base + steps]
    own = result["arms"]["real_only"]["validation_pixel_ap"]
    assert [lines[seed]["pixel_ap"][1] for seed in range(2)] == own


def test_while_anything_is_chosen_validation_photos_alone_are_scored(home, looked, result):
    found, known = looked
    assert found["looked_at"] == "validation" and found["runs"] == result["runs"]
    assert found["arms"]["wasm"]["pixel_ap"] == result["arms"]["wasm"]["validation_pixel_ap"]
    for run, names in zip(result["runs"], known, strict=True):
        assert not any(name.startswith("weighed:test:") for name in names)
        added = _names(home, run) - names
        assert added and all(name.startswith("weighed:test:") for name in added)  # nothing is fitted again


def test_the_aimed_arm_learns_by_probes_where_candidates_start(home, arguments):
    """From plain copies or with noise on them: slice by slice, at what paid on validation."""
    first = arguments.index("rounds=2")
    offered = ["wasm.start_strengths=[0.0,0.4]", "wasm.probe_steps=6", "wasm.budget=thompson"]
    plain = ["--seeds", "1", "--arms", "real_only", "undirected", "wasm"]
    one = ["--variant", "copies", "wasm.start_strengths=[0.0]", "--out", str(home / "probed.json")]
    refused = _benchmark(home, *plain, *one, "--look", "validation", *arguments[first:], *offered)
    assert refused.returncode == 2 and "wasm.probe_steps aims by the validation photos" in refused.stderr
    done = _benchmark(home, *plain, *one, *arguments[first:], *offered)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((home / "probed.json").read_text())
    assert found["pairs"]["wasm"] == found["pairs"]["wasm_copies"] == [8]
    ledger = Ledger(open_run(home / "runs" / found["runs"]))
    names = {event.get("name", "").rpartition(":")[0] for event in ledger.events()}
    assert {"probe:0:1", "probe:0.4:1", "probe:control"} <= names
    pools = [
        (ledger.milestone(f"pool:{name}") or {})["candidates"]
        for name in ("candidates", "undirected candidates")
    ]
    assert pools[0] == 2 * pools[1] > 0
