"""The closed loop from photos to report, on real actors, with a tiny generator and tiny fits."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.images import OWN, decode_png
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import read_manifest
from cdiff.data.photos import photos_of
from cdiff.data.run import open_run
from cdiff.data.store import read_pair
from cdiff.data.verdicts import Verdict, write_verdict
from cdiff.generator.crops import put
from cdiff.service.adoption import human_pair, store_human_pair
from cdiff.service.requests import PairRequest
from cdiff.service.studio import Studio
from cdiff.types import LEAST_CHANCE
from cdiff.wasm.layout import spell_out

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]


def _command(script: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    environment["CDIFF_HOME"] = str(home)
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
        check=False,
        timeout=350,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def done(home, tiny_loop) -> subprocess.CompletedProcess[str]:
    return _command("loop.py", "--run", "tiny", *tiny_loop, "resources.keep=needed", home=home)


def test_the_loop_runs_to_its_report_on_the_demo_data(done, home) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    run = open_run(home / "runs" / "tiny")
    ledger = Ledger(run)
    assert [result.round for result in ledger.rounds()] == [1, 2]
    for result in ledger.rounds():
        assert sum(n for _, reason, n in result.counts if reason == "kept") == result.kept
        assert result.weaknesses
        assert [name for name, _ in result.seconds] == [
            "adapt",
            "decide",
            "fit",
            "generate",
            "outcomes",
            "probe",
            "rank",
            "tune",
        ]
    assert str(run.report_dir) in done.stdout
    assert "split      train: " in done.stdout
    nothing_won = not any(result.decision.stands for result in ledger.rounds())
    assert ("the model of real photos alone stands" in done.stdout) == nothing_won
    page = next(run.report_dir.glob("*.html")).read_text(encoding="utf-8")
    assert "<html" in page and "data:image/" in page


def test_every_fit_goes_on_from_one_base_of_real_photos(done, home) -> None:
    ledger = Ledger(open_run(home / "runs" / "tiny"))
    bases = [event for event in ledger.events() if event.get("name") == "base"]
    assert len(bases) == 1
    names = [event.get("name") for event in ledger.events()]
    assert names.index("base") < names.index("real_only") < names.index("round-1")
    fitted = [ledger.milestone(name) for name in ("real_only", "round-1")]
    assert all(fit and fit["assessed"]["revision"] != bases[0]["revision"] for fit in fitted)


def test_the_first_budget_learns_from_a_probe_and_its_matched_control(done, home) -> None:
    ledger = Ledger(open_run(home / "runs" / "tiny"))
    names = [str(event.get("name")) for event in ledger.events()]
    probes = [name for name in names if name.startswith("probe:") and not name.endswith(":scores")]
    assert len(probes) == len(set(probes)) == 2 and "probe:control" in probes
    assert max(map(names.index, probes)) < names.index("round-1")
    control, probe = sorted(probes, key=lambda name: name != "probe:control")
    fits = [(ledger.milestone(name) or {})["result"]["revision"] for name in (control, probe)]
    assert fits[0] != fits[1], "the pairs make the difference"
    told = (ledger.milestone("probed") or {})["gains"]
    assert names.count("probed") == 1 and len(ledger.gains()) == len(told) + sum(
        len(result.gains) for result in ledger.rounds()
    )


def test_checkpoints_that_nothing_names_are_gone(done, home) -> None:
    run = open_run(home / "runs" / "tiny")
    ledger = Ledger(run)
    left = {path.name.split(".")[0] for path in run.checkpoints.iterdir() if not path.name.startswith(".")}
    named = {
        r
        for p in ledger.kept_pairs(accepted_only=False)
        for r in astuple(p.attempt.assignment.task.revisions)
    }
    real_only = (ledger.milestone("real_only") or {})["assessed"]["revision"]
    assert (named - {""}) | {real_only} <= left
    for result in ledger.rounds():
        assert (result.candidate in left) == (
            result.round == ledger.best_round() or result.candidate in named
        )
    fitted = [
        json.loads(path.read_text())["revision"] for path in (home / "shelf" / "fits").glob("*/fit.json")
    ]
    assert set(fitted) - left, "fold models stood here, too"


def test_the_test_split_is_read_once_and_before_and_after_are_both_there(done, home) -> None:
    ledger = Ledger(open_run(home / "runs" / "tiny"))
    finished = ledger.last("finished")
    assert finished is not None
    rivals = {"real_only", "copy_paste"} if ledger.best_round() else {"real_only"}
    assert set(finished["test"]) == {*rivals, "loop"}
    assert set(finished["ahead"]) == (rivals if ledger.best_round() else set())
    for told in finished["ahead"].values():
        assert told["low"] <= told["high"]
    assert all(0 <= arm["pixel_ap"] <= 1 for arm in finished["test"].values())
    assert finished["peak_memory_gb"] > 0


def _data(home: Path) -> list[str]:
    """Folders of the demo's photos."""
    return [str(path) for path in sorted((home / "data").glob("demo-*/*")) if path.is_dir()]


def test_kept_pairs_lie_on_training_photos_and_differ_from_them_only_in_their_region(done, home) -> None:
    run = open_run(home / "runs" / "tiny")
    (photos,), config = photos_of([run], _data(home), None), load_config(run.path / "config.yaml")
    train = set(read_manifest(run.splits_path).ids("train"))
    pairs = Ledger(run).kept_pairs(accepted_only=False)
    assert pairs
    for pair in pairs:
        task = pair.attempt.assignment.task
        assert {task.background, photos.target(task.reference).sample_id} <= train
        layout = spell_out(task, photos, config)
        region = np.zeros(layout.photo.shape[:2], bool)
        put(region, layout.canvas.region, layout.box)
        changed = (decode_png(read_pair(run, pair.attempt)[0], OWN) != layout.photo).any(axis=2)
        assert changed.any() and not changed[~region].any()


def test_the_same_command_goes_on_instead_of_starting_again(done, home, tiny_loop) -> None:
    ledger = home / "runs" / "tiny" / "ledger.jsonl"
    before = [ledger.read_text().count(f'"kind": "{kind}"') for kind in ("round", "milestone")]
    again = _command("loop.py", "--run", "tiny", *tiny_loop, home=home)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [ledger.read_text().count(f'"kind": "{kind}"') for kind in ("round", "milestone")] == before
    assert before[0] == 2  # and no fit was done again
    assert "with 2 of 2 rounds committed" in again.stdout


def test_another_configuration_is_refused_by_name_and_difference(done, home, tiny_loop) -> None:
    other = _command("loop.py", "--run", "tiny", *tiny_loop, "downstream.lr=0.5", home=home)
    assert other.returncode == 2
    assert "downstream.lr" in other.stderr


def test_mlflow_has_a_parent_with_one_child_per_round(done, home) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "cdiff")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1 and len(children) == 2
    assert parents[0].info.status == "FINISHED"
    assert "test/loop/pixel_ap" in parents[0].data.metrics
    assert "best/pixel_ap" in parents[0].data.metrics  # of the model that stands, not of the last round
    assert len(client.get_metric_history(parents[0].info.run_id, "validation/pixel_ap")) >= 2
    assert parents[0].data.params["generator.steps"] == "30"


def test_predict_writes_masks_of_the_photos_own_size(done, home, tmp_path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 77, 3)).astype(np.uint8)).save(
        folder / "a.jpg"
    )
    told = _command(
        "predict.py", str(home / "runs" / "tiny"), str(folder), "--out", str(tmp_path / "out"), home=home
    )
    assert told.returncode == 0, told.stderr
    assert Image.open(tmp_path / "out" / "masks" / "a.png").size == (77, 50)
    assert "a.jpg" in (tmp_path / "out" / "scores.csv").read_text()


def test_export_writes_an_mvtec_tree_that_the_reader_takes(done, home, tmp_path) -> None:
    from cdiff.config import DataConfig
    from cdiff.data.formats import read_source

    out = tmp_path / "export"
    told = _command("export.py", str(home / "runs" / "tiny"), str(out), "--all-kept", home=home)
    assert told.returncode == 0, told.stderr
    samples = [
        s for folder in out.iterdir() if folder.is_dir() for s in read_source(str(folder), DataConfig())
    ]
    assert len(samples) == len(Ledger(open_run(home / "runs" / "tiny")).kept_pairs(accepted_only=False))
    assert all(not sample.is_normal for sample in samples)


def test_kept_pairs_made_again_from_their_rows_have_the_same_bytes(done, home, tmp_path) -> None:
    sources = [part for path in _data(home) for part in ("--data", path)]
    run, out = str(home / "runs" / "tiny"), str(tmp_path / "again")
    told = _command("export.py", run, out, "--all-kept", "--regenerate", *sources, home=home)
    assert told.returncode == 0, told.stderr
    count = len(Ledger(open_run(run)).kept_pairs(accepted_only=False))
    assert count and f"made again, {count} of {count} are equal" in told.stdout


@pytest.mark.long
def test_a_pair_made_by_hand_is_trained_on_in_the_next_round(done, home, tiny_loop, tmp_path, sent) -> None:
    run = open_run(home / "runs" / "tiny")
    data = _data(home)
    config = load_config(run.path / "config.yaml")
    studio = Studio(run, Dataset(read_sources(data, None, config.data), config.data))
    category, kind = next(iter(studio.types))
    asked = {"category": category, "type": kind, "background": sent["photo"], "mask": sent["mask"]}
    request = PairRequest.model_validate(asked)
    (ticket,) = studio.tickets(request)
    row = human_pair(studio, request, ticket.task.task_id)
    shard = store_human_pair(run, request, row)
    write_verdict(run, Verdict(ticket.task.task_id, True, "Ada", 5.0, shard))
    more = _command("loop.py", "--run", "tiny", *tiny_loop, "rounds=3", home=home)
    assert more.returncode == 0, more.stderr[-3000:]
    ledger = Ledger(run)
    ((first, pair),) = ledger.human_pairs()
    assert first == 3 and pair in ledger.kept_pairs(accepted_only=False) and "by_people=1" in more.stdout
    page = next(run.report_dir.glob("*.html")).read_text(encoding="utf-8")
    assert "people made 1 of the pairs" in page
    sources, out = [part for path in data for part in ("--data", path)], str(tmp_path / "human")
    told = _command("export.py", str(run.path), out, "--all-kept", "--regenerate", *sources, home=home)
    count = len(ledger.kept_pairs(accepted_only=False))
    assert told.returncode == 0, told.stderr
    assert f"made again, {count} of {count} are equal" in told.stdout


@pytest.mark.long
def test_a_kept_model_gets_its_rival_of_copies(done, home, tiny_loop) -> None:
    """Whether a tiny round's model is kept is chance: in this copy of the run the second one's was, and the end is still to come."""
    folder = Path(shutil.copytree(home / "runs" / "tiny", home / "runs" / "kept"))
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    (last,) = [
        number for number, e in enumerate(events) if e["kind"] == "round" and e["result"]["round"] == 2
    ]
    events[last]["result"]["decision"] |= {"accepted": True, "chance": 1.0}
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events[: last + 1]))
    revision = events[last]["result"]["candidate"]
    if not (folder / "checkpoints" / revision).exists():  # resources.keep=needed
        shutil.copytree(
            next((home / "shelf" / "fits").glob(f"*/{revision}")), folder / "checkpoints" / revision
        )
    told = _command("loop.py", "--run", "kept", *tiny_loop, home=home)
    assert told.returncode == 0, told.stderr[-3000:]
    ledger = Ledger(open_run(folder))
    finished, copies = ledger.closing() or {}, ledger.milestone("copies") or {}
    assert ledger.best_round() == 2 and 0 < copies["pairs"] <= finished["pairs"] == len(
        ledger.kept_pairs(until=2)
    )
    assert {"real_only", "copy_paste", "loop"} == set(finished["test"]) and finished["seconds"]["copies"] > 0
    assert finished["copies_stand"] == (copies["decision"]["chance"] >= LEAST_CHANCE)
    assert f"with {copies['pairs']} pasted copies" in told.stdout
    page = next((folder / "report").glob("*.html")).read_text(encoding="utf-8")
    assert f"{copies['pairs']} pasted copies of real targets" in page
