"""What a benchmark's file says of its command, and what commands are refused."""

import json
import shlex

import pytest

from cdiff.errors import ConfigError
from jobs import quality_report
from jobs.benchmark import main
from jobs.measured import generic, how_measured
from jobs.quality_choices import variants


def test_the_told_command_names_no_folder_of_this_machine():
    told = generic(
        [
            "rounds=1",
            "--data",
            "/photos/of/screw",
            "--home",
            "/h/x",
            "--out",
            "/h/x.json",
            "--groups",
            "g.json",
            "--best",
            "/h/best.yaml",
        ]
    )
    assert told == [
        "rounds=1",
        "--data",
        "DATA/screw",
        "--home",
        "DATA/x",
        "--out",
        "x.json",
        "--groups",
        "g.json",
        "--best",
        "best.yaml",
    ]


def test_the_told_command_can_be_pasted():
    told = how_measured("jobs/benchmark.py loop", ["--data", "/photos/my screws", "wasm.band=[0,1]"])[
        "command"
    ]
    assert shlex.split(told)[2:] == ["loop", "--data", "DATA/my screws", "wasm.band=[0,1]"]


def test_a_variant_is_the_configuration_with_its_settings_on_top(tiny_config):
    found = variants(tiny_config, [["hard", "wasm.band=[0.7,1]"], ["ungated", "gate.checks=false"]])
    assert found["wasm_hard"].wasm.band == (0.7, 1.0) and found["wasm_hard"].gate == tiny_config.gate
    both = variants(tiny_config, [["both", "wasm.budget=prior", "wasm.easy=0"]])
    assert both["wasm_both"].wasm.easy == 0
    assert not found["wasm_ungated"].gate.checks and found["wasm_ungated"].wasm == tiny_config.wasm


def test_a_variant_starts_where_the_pool_does(tiny_config):
    wasm = tiny_config.wasm.model_copy(update={"start_strengths": (0.0, 0.3)})
    config = tiny_config.model_copy(update={"wasm": wasm})
    found = variants(config, [["copies", "wasm.start_strengths=[0]"]])
    assert found["wasm_copies"].wasm.start_strengths == (0.0,)
    for other in ("[0.5]", "[]"):
        with pytest.raises(ConfigError, match=r"some of the run's, \[0\.0, 0\.3\]"):
            variants(config, [["other", f"wasm.start_strengths={other}"]])


@pytest.mark.parametrize(
    "told",
    [
        [["Hard!", "wasm.band=[0,1]"]],
        [["hard", "wasm.easy=0"], ["hard", "wasm.easy=1"]],
        [["hard"]],
        [["many", "wasm.pairs=9"]],
        [["hard", "wasm.band=7"]],
        [["too_long", "wasm.band=[0,1]"]],
        [["same", "gate.checks=true"]],
        [["untaught", "wasm.budget=prior"]],
    ],
)
def test_a_variant_that_says_too_little_or_too_much_is_refused(tiny_config, told):
    with pytest.raises(ConfigError):
        variants(tiny_config, told)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("--seeds 0 0", "each seed once"),
        ("--seeds 0 1 --splits 0 1 2", "no more of them than of --seeds"),
        ("--seeds 0 1 --splits 0 0", "each split once"),
        ("--seeds 0 1 --equal-compute 2", "not among --seeds"),
        ("--seeds 0 1 --equal-compute 0 --most-fits 1", "at least 2"),
        ("data.split_seed=3 --seeds 0", "give --splits"),
        (
            "--seeds 0 --arms real_only wasm --variant any wasm.band=[0,1] --arms real_only",
            "name it in --arms",
        ),
    ],
)
def test_wishes_that_would_be_lost_in_silence_are_refused(tmp_path, capsys, told, reason):
    out = tmp_path / "quality.json"
    assert main(["quality", *told.split(), "--out", str(out), "--home", str(tmp_path / "home")]) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "home").exists()


def test_an_option_that_there_is_not_is_refused_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["backbone", "--bacht", "4", "--out", str(tmp_path / "b.json")])
    assert ended.value.code == 2 and "--bacht 4" in capsys.readouterr().err


def test_what_is_measured_is_written_split_by_split(tmp_path, monkeypatch, capsys, caplog):
    """A run of hours that ends after its first split leaves that one's numbers, and says that they are not all."""
    out = tmp_path / "quality.json"
    seen: list[tuple[int, list[int], dict | None]] = []

    def measure(arguments, split, seeds, args):
        seen.append((split, seeds, json.loads(out.read_text()) if out.exists() else None))
        return split, []

    def publish(results, pictures, about, seeds, out):
        return about | {"splits": list(results)}, "told"

    monkeypatch.setattr(quality_report, "_run_split", measure)
    monkeypatch.setattr(quality_report, "publish", publish)
    told = ["quality", "--seeds", "3", "4", "5", "--out", str(out), "--most-fits", "3"]
    assert main(told) == 0
    assert [(split, seeds) for split, seeds, _ in seen] == [(0, [3, 5]), (1, [4])]
    (_, _, before), (_, _, between) = seen
    assert (
        before is None
        and between is not None
        and between["splits"] == [0]
        and between["splits_to_come"] == [1]
    )
    after = json.loads(out.read_text())
    assert after["splits"] == [0, 1] and after["splits_to_come"] == []
    assert "--equal-compute" in caplog.text and capsys.readouterr().out.startswith("told")


def test_a_single_seed_has_a_single_split(tmp_path, monkeypatch):
    seen: list[int] = []

    def measure(arguments, split, seeds, args):
        seen.append(split)
        return split, []

    monkeypatch.setattr(quality_report, "_run_split", measure)
    monkeypatch.setattr(quality_report, "publish", lambda *args: ({}, ""))
    assert main(["quality", "--seeds", "3", "--out", str(tmp_path / "quality.json")]) == 0
    assert seen == [0]
