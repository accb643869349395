"""What is looked at before anything long begins."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.run import run_of
from cdiff.errors import ConfigError, DataError
from jobs.session import _name, cached_bytes, demand_targets, memory_note, open_session, parser


def _split(samples, groups: list[str]) -> tuple[list[Any], Any]:
    """Six photos with targets, two for each split; those that train show these objects."""
    shown = [sample for sample in samples if not sample.is_normal][:6]
    ids = {
        name: [s.sample_id for s in shown[2 * n : 2 * n + 2]]
        for n, name in enumerate(("train", "validation", "test"))
    }
    train = [dataclasses.replace(s, group=group) for s, group in zip(shown, groups, strict=False)]
    return [*train, *shown[2:]], SimpleNamespace(ids=ids.__getitem__)


def test_training_photos_of_one_object_are_refused_before_anything_is_trained(photos):
    demand_targets(*_split(photos.samples, ["one", "another"]))
    with pytest.raises(DataError, match=r"one source object.*\n?.*groups file"):
        demand_targets(*_split(photos.samples, ["one", "one"]))


def test_a_split_without_targets_is_named(photos):
    samples, manifest = _split(photos.samples, ["one", "another"])
    with pytest.raises(DataError, match="validation split"):
        demand_targets([s for s in samples if s.sample_id not in manifest.ids("validation")], manifest)


def test_photos_that_are_too_many_and_large_to_be_scored_are_told_before_hours_of_training(photos):
    samples, manifest = _split(photos.samples, ["one", "another"])
    large = [dataclasses.replace(sample, width=6000, height=5000) for sample in samples]
    told = memory_note(large, manifest, 1.5e9)  # two photos of 30 megapixels a split
    assert "the 2 validation photos" in told and "up to 1.0 GB at once" in told and "1.5 GB for Ray" in told
    assert not memory_note(large, manifest, 2e9) and not memory_note(samples, manifest, 1.5e9)
    assert not memory_note(large, manifest, 0), "where Ray does not tell, nothing is"


def test_what_actors_hold_of_photos_is_told_where_it_takes_most_of_the_memory(photos):
    samples, manifest = _split(photos.samples, ["one", "another"])
    many = [dataclasses.replace(sample, width=6000, height=5000) for sample in samples] * 50  # 36 GB decoded
    config = load_config(None, ["resources.generators=2", "resources.downstreams=2"])
    assert cached_bytes(config, many, 1) == 5 * 1.5e9 and cached_bytes(config, many, 3) == 2 * 1.5e9
    assert cached_bytes(config, samples, 1) < 1e7, "no more than there is"
    told = memory_note(samples, manifest, 8e9, cached_bytes(config, many, 1))
    assert "up to 7.5 GB of decoded photos" in told and "data.cache_megabytes=300" in told
    assert not memory_note(samples, manifest, 32e9, cached_bytes(config, many, 1))


def test_searches_between_rounds_are_the_loops_alone(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"jobs/loop\.py alone, not for jobs/benchmark\.py loop"),
        open_session(["--retune-every", "1"], purpose="loop-", program="jobs/benchmark.py loop"),
    ):
        pass


@pytest.mark.parametrize("purpose", ["", "sweep-", "quality-split12-"])
@pytest.mark.parametrize(
    ("told", "stem"),
    [
        (["--data", "/photos/tile"], "tile"),
        (["--data", "/photos/MVTec_AD-1.0/"], "MVTec_AD-1.0"),
        (["--data", "s3://bucket/tile", "--data", "/photos/more"], "tile"),
        (["--config", "configs/mvtec.yaml", "--data", "/photos/Magnetic Tile"], "mvtec"),
        ([], "demo"),
        (["--data", "/photos/Magnetic Tile"], "Magnetic-Tile"),
        (["--data", "/photos/M\u00e4ngel (2024)"], "M-ngel-2024"),
        (["--data", "/photos/\u64e6\u308a\u50b7"], "run"),
        (["--data", "/"], "run"),
        (["--data", "."], "here"),
        (["--data", "inside/.."], "here"),
        (["--data", "/photos/" + "long " * 30], ("long-" * 12)),
        (["--config", "my tiles.yaml"], "my-tiles"),
    ],
)
def test_photos_may_lie_in_a_folder_of_any_name(told, stem, purpose, tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    name = _name(parser().parse_args(told), Config(), SimpleNamespace(hash="abc"), purpose)  # type: ignore[arg-type]
    assert name[: -len("-01234567")] == purpose + stem
    assert run_of(tmp_path, name).name == name


def test_memory_for_photos_names_no_other_run() -> None:
    """Who is short of it goes on with the same command and less."""
    splits: Any = SimpleNamespace(hash="abc")
    names = {
        _name(parser().parse_args([]), load_config(None, told), splits, "")
        for told in ([], ["data.cache_megabytes=300", "resources.generators=1"])
    }
    assert len(names) == 1
    assert _name(parser().parse_args([]), load_config(None, ["data.demo_side=64"]), splits, "") not in names


def test_a_run_is_called_after_the_link_that_the_user_gave(tmp_path, monkeypatch) -> None:
    (tmp_path / "2024-03-11").mkdir()
    (tmp_path / "tile").symlink_to(tmp_path / "2024-03-11")
    monkeypatch.chdir(tmp_path)
    name = _name(parser().parse_args(["--data", "tile"]), Config(), SimpleNamespace(hash="abc"), "")  # type: ignore[arg-type]
    assert name.startswith("tile-")
