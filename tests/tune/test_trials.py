"""How trials are proposed, stopped and counted: nothing is compared across budgets, and what was measured is not lost."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.trial import TrialState
from ray import tune

from cdiff.config_file import load_config
from cdiff.errors import ActorError, LoopStalled
from tune import trials
from tune.space import domains, here, space
from tune.trials import Search, _Halving, _Recorder, _searcher, place, run_trials

CONFIG = load_config(None, ["wasm.arm=B0"])
FREE = space(CONFIG)


def test_the_model_does_not_take_an_early_gain_for_one_at_the_whole_budget() -> None:
    searcher = _searcher([], Search(4), 1, rungs=3)
    searcher.set_search_properties("gain", "max", domains(FREE))
    for name, gains in (("early", [0.9]), ("later", [0.8, 0.7]), ("whole", [0.1, 0.2, 0.3])):
        searcher.suggest(name)
        results = [{"gain": gain, "training_iteration": number} for number, gain in enumerate(gains, 1)]
        for told in results[:-1]:
            searcher.on_trial_result(name, told)
        searcher.on_trial_complete(
            name, results[-1]
        )  # where it is stopped, Tune tells its last result only so
    early, later, whole = searcher._ot_study.trials
    assert (early.state, early.intermediate_values) == (TrialState.PRUNED, {1: 0.9})
    assert (later.state, later.intermediate_values) == (TrialState.PRUNED, {1: 0.8, 2: 0.7})
    assert (whole.state, whole.value) == (TrialState.COMPLETE, 0.3)
    assert searcher._ot_study.best_trial.number == whole.number


def test_a_trial_of_an_earlier_try_goes_as_far_as_it_went() -> None:
    scheduler = _Halving(time_attr="budget", max_t=4, grace_period=1, reduction_factor=2)
    scheduler.set_search_properties("gain", "max")

    def decided(name: str, gain: float, more: bool) -> str:
        trial: Any = SimpleNamespace(trial_id=name)
        scheduler._trial_info.setdefault(name, scheduler._brackets[0])
        return scheduler.on_trial_result(None, trial, {"budget": 1, "gain": gain, "more_is_known": more})

    assert decided("first", 0.5, False) == "CONTINUE"
    assert decided("poor", 0.1, False) == "STOP"
    assert decided("poor, but measured further", 0.1, True) == "CONTINUE"


def test_a_trial_reserves_the_place_of_a_downstream_actor() -> None:
    shares = ["resources.cpus=2", "resources.gpus=1", "resources.downstream_gpus=0.25"]
    assert place(load_config(None, [*shares, "resources.device=cuda"])) == {"cpu": 2, "gpu": 0.25}
    assert place(load_config(None, shares)) == {"cpu": 2, "gpu": 0}, "device=cpu"
    nothing = place(load_config(None, ["resources.cpus=0"]))
    tune.with_resources(lambda _: None, nothing)  # Tune refuses one that reserves nothing
    assert nothing["cpu"] < 0.01


def test_a_sweep_whose_place_others_have_says_so_and_ends(monkeypatch, caplog) -> None:
    config = load_config(None, ["resources.stall_timeout_s=60", "resources.wait_seconds=100"])
    clock = iter([0.0, 10.0, 100.0, 500.0])
    monkeypatch.setattr(trials, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bench = cast(Any, SimpleNamespace(config=config, generators=("one",)))
    recorder = _Recorder(bench, FREE, lambda *_: None)
    waiting, running = SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")
    recorder.on_step_begin(1, [waiting, running])
    assert not caplog.messages
    recorder.on_step_begin(2, [waiting])  # 90 s without any: others may end soon
    assert caplog.messages == ["no trial has its place ({'cpu': 0.4, 'gpu': 0}): waiting at most 100 s"]
    with pytest.raises(LoopStalled, match="no trial found its place"):
        recorder.on_step_begin(3, [waiting])


def test_generators_make_room_where_no_trial_has_its_place(monkeypatch, caplog) -> None:
    """As after the loss of a node: they came back first."""
    config = load_config(None, ["resources.wait_seconds=100"])
    clock = iter([0.0, 170.0, 300.0, 340.0, 600.0, 761.0, 1000.0])
    monkeypatch.setattr(trials, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked: list[Any] = []

    def made(names: Any) -> list[str]:
        asked.append(names)
        return list(names[:-1])

    monkeypatch.setattr(trials, "make_room", made)
    bench = cast(Any, SimpleNamespace(config=config, generators=("one", "two", "three")))
    recorder = _Recorder(bench, FREE, lambda *_: None)
    waiting, running = SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")
    for number, status in enumerate([waiting, waiting, waiting, running, waiting, waiting]):
        recorder.on_step_begin(number, [status])
    assert asked == [("one", "two", "three"), ["one", "two"]], "one by one, and one stays"
    assert "no trial has its place: 1 generators go on, to make room" in caplog.messages


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 2])
def test_a_trial_that_waited_in_vain_ends_the_sweep(local_ray, monkeypatch, tmp_path, retries) -> None:
    """All trials wait for the same actors: each would wait as long, as often as Tune repeats it."""
    begun = tmp_path / "begun"

    def trial(config, bench, dataset, dimensions, search, code) -> None:
        with begun.open("a") as file:
            file.write("x")
        raise LoopStalled("1 of 1 calls of fidelity wait")

    monkeypatch.setattr(trials, "_trial", trial)
    config = load_config(None, ["wasm.arm=B0", "resources.downstreams=1", f"resources.retries={retries}"])
    bench = cast(Any, SimpleNamespace(config=config, rungs=(1, 2), generators=()))
    with pytest.raises(LoopStalled, match=r"^1 of 1 calls of fidelity wait$"):
        trials._tune(bench, None, FREE, [], Search(1, model=False), lambda *_: None)
    assert begun.read_text() == "x"


@pytest.fixture
def bench(monkeypatch) -> Any:
    """A bench whose trials are measured at once; `tried` has what Tune was asked for."""
    made = SimpleNamespace(
        run=None, rungs=(1, 2), stored=[], tried=[], key=lambda point: str(sorted(point.items()))
    )

    def tuned(bench, dataset, dimensions, points, search, told) -> str:
        made.tried.append((search.trials, points))
        for point in points[: search.trials]:
            if all(trial["point"] != point for trial in made.stored):
                made.stored.append({"key": made.key(point), "point": point, "rungs": [{}, {}], "ended": True})
        return "no space left"

    monkeypatch.setattr(trials, "_tune", tuned)
    monkeypatch.setattr(trials, "stored", lambda run: [dict(trial) for trial in made.stored])
    return made


def test_a_space_of_few_points_is_measured_whole_instead_of_failing(bench) -> None:
    fixed = here(CONFIG, FREE)
    few = space(CONFIG, fixed | {"sampling.mode": ["mask_first", "given_mask"]})
    found = run_trials(bench, None, few, [here(CONFIG, few)], Search(24), lambda *_: None)
    assert {trial["point"]["sampling.mode"] for trial in found} == {"mask_first", "given_mask"}
    assert [count for count, _ in bench.tried] == [2]


def test_where_points_are_few_what_is_left_of_them_is_given_once_the_searcher_repeats_itself(bench) -> None:
    six = space(
        CONFIG,
        here(CONFIG, FREE) | {"sampling.mode": ["mask_first", "given_mask"], "sampling.steps": [8, 10]},
    )
    found = run_trials(bench, None, six, [here(CONFIG, six)], Search(5), lambda *_: None)
    assert len({trial["key"] for trial in found}) == 5 and len(bench.tried) == 2


def test_a_trial_that_failed_half_way_is_no_part_of_the_sweep(bench) -> None:
    points = [here(CONFIG, FREE) | {"sampling.safe_strength": value} for value in (2.0, 3.0, 4.0)]
    half = {"key": bench.key(points[0]), "point": points[0], "rungs": [{}], "ended": False}
    bench.stored.append(half)
    with pytest.raises(ActorError, match=r"2 of 3 trials .* no space left"):
        run_trials(bench, None, FREE, points[1:], Search(3), lambda *_: None)
    found = run_trials(bench, None, FREE, points[1:], Search(2), lambda *_: None)
    assert [trial["point"]["sampling.safe_strength"] for trial in found] == [3.0, 4.0]
