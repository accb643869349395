"""Settings: known, in range, in one place, and resolved the same way from YAML and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from cdiff.config import Config, Settings
from cdiff.config_file import build_config, dump_config, load_config, valid_keys
from cdiff.errors import CdiffError, ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def _leaves(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves += _leaves(field.annotation, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", field))
    return leaves


def test_every_setting_has_a_default_and_a_reason() -> None:
    for key, field in _leaves(Config):
        assert not field.is_required(), key
        assert field.description, f"{key} has no reason"
        assert len(field.description) > 10, key


def test_every_number_has_a_range() -> None:
    for key, field in _leaves(Config):
        if field.annotation in (int, float):
            assert field.metadata, f"{key} takes any number"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("rounds: 5\ngenerator:\n  steps: 70\n  batch: 4\n")
    config = load_config(
        path, ["generator.steps=400", "data.demo=true", "wasm.band=[0.1, 0.5]", "tracking.name=first try"]
    )
    assert (config.rounds, config.generator.batch, config.generator.steps) == (5, 4, 400)
    assert config.data.demo is True
    assert config.wasm.band == (0.1, 0.5)
    assert config.tracking.name == "first try"
    assert config.generator.lr == Config().generator.lr


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("generator.stpes=3", "generator.steps"),
        ("generater.steps=3", r"generator\?"),
        ("downstream.learning=1", "downstream"),
        ("steps=3", "steps"),
        ("data.train_image=3", "data.train_images"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(override: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown setting {override.split('=')[0].split('.')[0]}.*\n*.*{near}"
    ):
        load_config(None, [override])


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"rounds": 0, "generator": {"steps": "many", "nonsense": 1}})
    for key in ("rounds", "generator.steps", "generator.nonsense"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "generator.resolution=60",
        "wasm.uniform=1.2",
        "sampling.start_strength=-0.1",
        "wasm.arm=B9",
        "resources.device=tpu",
        "sampling.scale=[2,1]",
        "wasm.band=[0.9,0.1]",
        "wasm.band=[40,85]",
        "wasm.start_strengths=[0.3,1.5]",
        "wasm.start_strengths=[-0.1]",
        "wasm.start_strengths=[0.3,0.30]",
        "sampling.scale=[0,1]",
        "sampling.guidance_interval=[0,2]",
        "generator.margin=[0.2,0.4]",
        "generator.channels=[40,80]",
        "generator.unshuffle=3",
        "safe.channels=[20,40]",
        "data.train_share=0.9",
        "wasm.uniform=0.95",
    ],
)
def test_values_out_of_range_are_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].replace(".", r"\.")):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("values", "told"), [("[5,-1]", "each must lie between 0 and 1"), ("[0.3,0.3]", "give it once")]
)
def test_start_strengths_that_the_budget_cannot_choose_from_are_told_apart(values: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"wasm\.start_strengths.*{told}"):
        load_config(None, [f"wasm.start_strengths={values}"])
    assert load_config(None, ["wasm.start_strengths=[0,0.3,1]"]).wasm.start_strengths == (0.0, 0.3, 1.0)


@pytest.mark.parametrize(
    "told",
    [
        ["resources.generators=2", "resources.least_generators=3"],
        ["train.workers=2", "train.least_workers=3"],
    ],
)
def test_more_than_all_can_never_be_the_least(told: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"\w+\.least_\w+=3 is above \w+\.\w+=2"):
        load_config(None, told)


def test_shares_that_exceed_the_budget_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not exceed 1"):
        load_config(None, ["wasm.uniform=0.6", "wasm.easy=0.6"])


@pytest.mark.parametrize("override", ["generator.steps", "=3", "rounds.deep=3", "seed=[1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [override])


def test_an_override_into_a_plain_value_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("rounds: 2\n")
    with pytest.raises(ConfigError, match="rounds is not a section"):
        load_config(path, ["rounds.deep=3"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff\xfe"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_config(path)


def test_a_missing_file_is_named_and_is_an_error_that_the_program_shows(tmp_path: Path) -> None:
    with pytest.raises(CdiffError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(path) == Config()


def test_the_dumped_config_is_complete_and_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(None, ["generator.channels=[32, 64]", "rounds=7"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    resolved = yaml.safe_load(path.read_text())
    for key in valid_keys():
        section, _, name = key.partition(".")
        assert (name in resolved[section]) if name else (section in resolved)


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.rounds = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.generator.steps = 3  # type: ignore[misc]
    assert all(model.model_config.get("frozen") for model in Settings.__subclasses__())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    load_config(path)


def test_the_four_shipped_profiles_are_there() -> None:
    assert {"demo", "magnetic_tile", "mvtec", "polyp"} <= {path.stem for path in CONFIGS}


def test_the_demo_runs_on_demo_data_and_the_others_on_the_users() -> None:
    on_demo = {path.stem for path in CONFIGS if load_config(path).data.demo}
    assert on_demo == {"demo"}


def test_joint_sampling_and_best_of_k_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="use B0"):
        load_config(None, ["sampling.mode=joint"])
    assert load_config(None, ["sampling.mode=joint", "wasm.arm=B0"]).wasm.arm == "B0"


def test_a_password_in_settings_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        load_config(None, ["tracking.uri=postgresql://me:hunter2@db/mlflow"])
    assert "hunter2" not in str(caught.value)
    assert load_config(None, ["tracking.uri=postgresql://db/mlflow"]).tracking.uri == "postgresql://db/mlflow"
