"""The space of a sweep: what an arm has is searched, what it lacks is refused, and a point becomes settings of the loop."""

import pytest
import yaml

from cdiff.config import Config
from cdiff.config_file import load_config, overridden
from cdiff.errors import ConfigError
from tune.retune import Retuning, demand_retunable
from tune.space import SPACE, applied, domains, every_point, here, overlay, read_space, space, whole, within

CONFIG = Config()
B3, B4 = (overridden(CONFIG, [f"wasm.arm={arm}"]) for arm in ("B3+B2", "B4"))


def test_every_arm_has_its_own_strengths() -> None:
    def names(config: Config) -> set[str]:
        return {dimension.name for dimension in space(config)}

    everywhere = {dimension.name for dimension in SPACE if not dimension.arm}
    assert names(CONFIG) == everywhere | {"wasm.candidates"}  # B1 by default
    assert names(B3) == everywhere | {"sampling.weakness_strength"}
    assert names(B4) == everywhere | {"sampling.gradient_strength"}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"sampling.gradient_strength": 0.05}, "B1 does not have it"),
        ({"sampling.safe_strenght": 2}, "Did you mean sampling.safe_strength"),
        ({"sampling.safe_strength": [4, 2]}, "neither a number nor"),
        ({"sampling.safe_strength": [2, 400]}, "safe_strength"),
        ({"sampling.safe_strength": 0}, "above 0"),
        ({"sampling.steps": 8.5}, "whole"),
        ({"sampling.mode": "sideways"}, "not among"),
        ({"sampling.mode": "joint"}, "not among"),  # arm B1 compares images of one mask
        ({"wasm.band.low": True}, "neither a number"),
        ({"sampling.guidance_interval.low": [0, 0.9]}, "lowest"),
        ({"sampling.safe_strength": [1.23456, 1.23459]}, r"one value in four digits.*or 1\.235 alone"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(wanted, told) -> None:
    with pytest.raises(ConfigError, match=told):
        space(CONFIG, wanted)


def test_a_file_narrows_widens_and_fixes(tmp_path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "sampling.safe_strength: [1.5, 12]\nsampling.steps: 16\nsampling.mode: [given_mask]\n",
        encoding="utf-8",
    )
    found = {dimension.name: dimension for dimension in read_space(path, CONFIG)}
    assert (found["sampling.safe_strength"].low, found["sampling.safe_strength"].high) == (1.5, 12)
    assert found["sampling.steps"].fixed and found["sampling.mode"].fixed
    searched = domains(list(found.values()))
    assert "sampling.steps" not in searched and "sampling.safe_strength" in searched
    point = whole(list(found.values()), {name: domain.sample() for name, domain in searched.items()})
    assert (
        set(point) == set(found) and point["sampling.steps"] == 16 and point["sampling.mode"] == "given_mask"
    )
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="mapping"):
        read_space(tmp_path / "list.yaml", CONFIG)
    everything = here(CONFIG, space(CONFIG))
    with pytest.raises(ConfigError, match="every setting is fixed"):
        space(CONFIG, everything)


def test_a_point_becomes_settings_and_a_file_that_the_loop_takes(tmp_path) -> None:
    point = here(CONFIG, space(CONFIG)) | {"wasm.band.low": 0.55, "wasm.band.width": 0.6, "sampling.steps": 9}
    changed = applied(CONFIG, point)
    assert changed.wasm.band == (0.55, 1.0) and changed.sampling.steps == 9
    assert changed.sampling.safe_strength == CONFIG.sampling.safe_strength
    path = tmp_path / "best.yaml"
    path.write_text(overlay(CONFIG, point), encoding="utf-8")
    assert set(yaml.safe_load(path.read_text())) == {"downstream", "sampling", "wasm"}
    assert load_config(None, overlay=path) == changed
    weak = overridden(CONFIG, ["wasm.arm=B3+B1"])
    path.write_text(overlay(weak, here(weak, space(weak))), encoding="utf-8")
    assert load_config(None, overlay=path).wasm.arm == "B3+B1", "another arm would ignore its strength"
    assert load_config(None, ["sampling.steps=5"], overlay=path).sampling.steps == 5, "the command line wins"


def test_start_strength_is_the_budgets_or_the_sweeps() -> None:
    config = overridden(CONFIG, ["wasm.start_strengths=[0.2,0.4]"])
    for fixed in ({}, {"sampling.start_strength": 0.4}):  # a loop with the overlay would choose again
        with pytest.raises(ConfigError, match=r"Search without: wasm\.start_strengths=\[\]"):
            space(config, fixed)


def test_a_point_lies_within_a_space_or_not() -> None:
    dimensions = space(CONFIG, {"sampling.safe_strength": [2, 4]})
    inside = here(CONFIG, dimensions)
    assert within(dimensions, inside)
    assert not within(dimensions, inside | {"sampling.safe_strength": 5.0})
    assert not within(dimensions, inside | {"sampling.gradient_strength": 0.1})


@pytest.mark.parametrize("config", [CONFIG, B3, B4], ids=lambda config: config.wasm.arm)
def test_every_point_that_is_measured_lies_within_its_space(config) -> None:
    """At both ends of every range, and where one is fixed: points are rounded."""
    for dimension in [d for d in space(config) if not d.choices]:
        value = dimension.low + (dimension.high - dimension.low) / 3
        value = int(value) if dimension.whole else value + 1e-7
        for wanted in (value, [value, dimension.high], [dimension.low, value]):
            narrowed = space(config, {dimension.name: wanted})
            (own,) = (d for d in narrowed if d.name == dimension.name)
            for end in (own.low, own.high):
                point = whole(narrowed, here(config, narrowed) | {dimension.name: end})
                assert within(narrowed, point), (wanted, point)


@pytest.mark.parametrize(
    ("name", "wanted", "measured"),
    [
        ("sampling.safe_strength", 1.23456, 1.235),
        ("sampling.safe_strength", 3.3333333, 3.333),
        ("downstream.synthetic_mix", 0.33333, 0.3333),
    ],
)
def test_a_fixed_value_of_many_digits_is_measured_and_found_again(name, wanted, measured) -> None:
    dimensions = space(CONFIG, {name: wanted})
    point = whole(dimensions, {key: domain.sample() for key, domain in domains(dimensions).items()})
    assert point[name] == measured and within(dimensions, point)


def test_where_the_configuration_stands_is_a_point_of_the_space() -> None:
    for config in (CONFIG, B3, B4, overridden(CONFIG, ["sampling.safe_strength=0.5"])):
        dimensions = space(config)
        point = here(config, dimensions)
        assert all(0 <= dimension.share(point[dimension.name]) <= 1 for dimension in dimensions)
    assert applied(B3, here(B3, space(B3))) == B3


def test_a_small_space_is_told_whole_and_a_large_one_or_a_continuous_one_is_not() -> None:
    fixed = {d.name: here(CONFIG, space(CONFIG))[d.name] for d in space(CONFIG)}
    small = space(CONFIG, fixed | {"sampling.steps": [8, 10], "sampling.mode": ["mask_first", "given_mask"]})
    points = every_point(small, 6)
    assert len(points) == 6 == len({tuple(point.items()) for point in points})
    assert all(within(small, point) for point in points)
    assert every_point(small, 5) == []
    assert every_point(space(CONFIG, fixed | {"sampling.safe_strength": [2, 3]}), 100) == []


def test_a_sweep_that_would_never_come_is_refused_at_the_start(photos) -> None:
    for rounds, wanted, told in (
        (3, Retuning(3, 4), "no round would come"),
        (3, Retuning(1, 0), "--retune-trials 0"),
    ):
        config = overridden(CONFIG, [f"rounds={rounds}"])
        with pytest.raises(ConfigError, match=told):
            demand_retunable(config, photos, None, wanted)  # type: ignore[arg-type]
