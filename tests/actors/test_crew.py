"""What is dear is asked of actors once, and remembered in the ledger; and nobody is shown a photo that is to judge it."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from actors import together
from actors.crew import Crew
from actors.downstream import TALLIES, Downstream, Evaluation, Fit
from cdiff.config_file import build_config, dump_config
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Row, make_manifest
from cdiff.data.retention import needed
from cdiff.data.splits import make_splits
from cdiff.data.store import create_run
from cdiff.downstream.segmenter import build_segmenter
from cdiff.errors import ActorError, ConfigError, ResourceError
from cdiff.generator.training import TRAINING_STATE, Trained
from cdiff.types import Knowledge, Outcome, Revisions
from cdiff.wasm.quality import Thresholds
from tests.actors.test_shelf import assignment


class Actors:
    """Answers as a group of actors does, and counts; ends after `lives` calls."""

    def __init__(self, answer: Any, lives: int = 100) -> None:
        self.answer, self.lives, self.asked = answer, lives, 0

    def call(self, method: str, *arguments: Any, watch: Any = None) -> Any:
        if self.asked == self.lives:
            raise ActorError("killed")
        self.asked += 1
        return self.answer(method, *arguments)

    def stream(self, method: str, work: Any, *, watch: Any = None) -> Any:
        for name, arguments in work:
            yield name, self.call(method, *arguments)


def _outcome(sample_id: str) -> Outcome:
    return Outcome(sample_id, sample_id, "c", "t", "g", 0, 0.1, 0.5, 0.5, 0.1, 0.5, 0.1, 0.1, 0.1)


@pytest.fixture
def crew(tmp_path, photos, tiny_config) -> Any:
    config = build_config(
        {**tiny_config.model_dump(), "wasm": {**tiny_config.wasm.model_dump(), "arm": "B2"}}
    )
    _, manifest = make_splits(photos.samples, config.data, folds=2)
    crew: Any = object.__new__(Crew)  # its actors are those above
    crew.run = create_run(tmp_path, "one", dump_config(config), manifest)
    crew.config, crew.dataset, crew.manifest = config, photos, manifest
    crew.train, crew.validation = manifest.ids("train"), manifest.ids("validation")
    crew.downstream = Actors(lambda *_: None)
    return crew


@pytest.mark.parametrize(
    ("key", "value"), [("factory", "torchvision.models:fctory"), ("weights", "/none.safetensors")]
)
def test_a_segmenter_that_cannot_be_made_is_told_before_the_generator_is_trained(crew, key, value) -> None:
    settings = crew.config.model_dump()
    crew.config = build_config({**settings, "downstream": {**settings["downstream"], key: value}})
    downstream = Downstream(crew.run, crew.config, crew.dataset)
    crew.downstream = Actors(lambda method: getattr(downstream, method)())
    crew.generators = Actors(None, lives=0)
    with pytest.raises(ConfigError, match=rf"(?s)downstream\.{key}"):
        crew.prepare(Ledger(crew.run))


def test_folds_that_were_fitted_are_not_fitted_again_after_a_kill(crew) -> None:
    def fold(method: str, request: Any, steps: int, held: list[str], number: int) -> list[Outcome]:
        return [_outcome(sample_id) for sample_id in held]

    ledger, whole = Ledger(crew.run), Actors(fold)
    crew.downstream = Actors(fold, lives=1)
    with pytest.raises(ActorError):
        crew.outcomes(ledger, ())
    crew.downstream = whole
    found = crew.outcomes(ledger, ())
    assert sorted(row.sample_id for row in found) == sorted(crew.train)
    assert whole.asked == crew.config.wasm.folds - 1
    assert crew.outcomes(ledger, ()) == found and whole.asked == crew.config.wasm.folds - 1
    ledger.close()


def test_what_a_mining_arm_learned_stays_as_long_as_nothing_else_is_known(crew) -> None:
    """On a GPU it would be learned otherwise, and each pair of the round would be another."""
    ledger, revisions = Ledger(crew.run), Revisions("g", "b")
    crew.coordinator = Actors(lambda *_: [])
    crew.generators = Actors(lambda *_: Revisions("g", "b", "s", f"miner-{crew.generators.asked}"))
    now = Knowledge(()), [_outcome("a")], revisions, "s"
    first = crew.adapt(ledger, 1, *now)
    assert crew.adapt(ledger, 1, *now) == first == Revisions("g", "b", "s", "miner-1")
    assert crew.adapt(ledger, 2, *now) != first
    assert crew.adapt(ledger, 1, Knowledge(()), [_outcome("b")], revisions, "s") != first
    ledger.close()


def test_a_training_with_fewer_workers_than_wanted_is_on_record(crew, monkeypatch) -> None:
    crew.config = build_config({**crew.config.model_dump(), "train": {"workers": 4, "least_workers": 1}})
    ledger, crew.shared, crew._local, crew._grown = Ledger(crew.run), None, True, False
    (crew.run.checkpoints / "generator-1").mkdir(parents=True)
    answers = iter([((0, 9), None, 0), ((1, 9), None, 3), ((2, 9), None, 3), ((3, 9), None, 2)])
    done = (9, 9), ("done", Trained("generator-1", (0.5,))), 2
    told = SimpleNamespace(ask=SimpleNamespace(remote=lambda: next(answers, done)))
    over = threading.Event()
    trainer = SimpleNamespace(fit=over.wait)
    monkeypatch.setattr(together, "ray", SimpleNamespace(get=lambda answer: answer))
    monkeypatch.setattr(together, "POLL_SECONDS", 0.01)

    def train(run, config, shared, batch, work, watch, local, grow, joined) -> Trained:
        return together._followed(trainer, told, config, watch, joined)

    monkeypatch.setattr("actors.staff.train_together", train)
    monkeypatch.setattr(crew, "rest", lambda: None)
    monkeypatch.setattr(crew, "wake", lambda: None)
    crew.extractor = Actors(None, lives=0)
    with pytest.raises(ActorError):  # of the extractor, which comes next
        crew.prepare(ledger)
    over.set()
    found = [event for event in Ledger(crew.run).events() if event["kind"] == "workers"]
    assert [(e["training"], e["wanted"], e["had"]) for e in found] == [
        ("generator", 4, 3),
        ("generator", 4, 2),
    ]
    ledger.close()


def test_a_finished_training_is_noted_before_room_is_asked_for(crew, monkeypatch) -> None:
    """Others may have taken the actors' places meanwhile: the run ends, and the same command goes on from the generator."""
    crew.config = build_config({**crew.config.model_dump(), "train": {"workers": 2}})
    ledger, crew.shared, crew._local, crew._grown = Ledger(crew.run), None, True, False
    state = crew.run.checkpoints / TRAINING_STATE
    (crew.run.checkpoints / "generator-1").mkdir(parents=True)

    def train(*_: Any) -> Trained:
        state.write_bytes(b"of the last step")
        return Trained("generator-1", (0.5,))

    def no_room() -> None:
        raise ResourceError("others have the places")

    monkeypatch.setattr("actors.staff.train_together", train)
    monkeypatch.setattr(crew, "rest", lambda: None)
    monkeypatch.setattr(crew, "wake", no_room)
    with pytest.raises(ResourceError):
        crew.prepare(ledger)
    assert (ledger.milestone("generator") or {})["revision"] == "generator-1"
    assert list((crew.run.home / "generators").glob("*/generator-1")), "other runs need not train it"
    crew.extractor, crew.generators = Actors(None, lives=0), Actors(None, lives=0)
    with pytest.raises(ActorError):  # of the extractor, which comes next
        crew.prepare(ledger)
    assert crew.generators.asked == 0
    assert not state.exists()
    ledger.close()


def test_a_fit_by_several_workers_is_noted_before_room_is_asked_for(crew, monkeypatch) -> None:
    several = {"train": {"workers": 2, "segmenters": True}, "downstream": {"base_steps": 3, "steps": 3}}
    crew.config = build_config({**crew.config.model_dump(), **several})
    ledger, crew.shared, crew._local, crew._grown = Ledger(crew.run), None, True, False
    fits: list[str] = []

    def train(*_: Any) -> Fit:
        fits.append(f"segmenter-{len(fits)}")
        return Fit(fits[-1], (0.5,), 1.0)

    def no_room() -> None:
        raise ResourceError("others have the places")

    monkeypatch.setattr("actors.staff.train_together", train)
    monkeypatch.setattr(crew, "rest", lambda: None)
    monkeypatch.setattr(crew, "wake", no_room)
    for _ in range(2):
        with pytest.raises(ResourceError):  # the base's, then real-only's
            crew.assess(ledger, "real_only", pairs=[])
    crew.downstream = Actors(None, lives=0)
    with pytest.raises(ActorError):  # of the evaluation, which comes next
        crew.assess(ledger, "real_only", pairs=[])
    assert fits == ["segmenter-0", "segmenter-1"]
    assert set(fits) <= needed(ledger)
    ledger.close()


def test_a_model_is_noted_with_the_number_of_pairs_that_it_was_fitted_on(crew) -> None:
    """What people turn away later is trained on no more, but this model has it."""
    answers = {"fit": Fit("rev", (0.5,), 1.0), "evaluate": Evaluation({"pixel_ap": 0.4}, {}, 0.5, ())}
    ledger, crew.downstream = Ledger(crew.run), Actors(lambda method, *_: answers[method])
    crew.config = build_config({**crew.config.model_dump(), "downstream": {"base_steps": 0, "steps": 3}})
    crew.assess(ledger, "round-1", [SimpleNamespace(task_id="a"), SimpleNamespace(task_id="b")])
    assert (ledger.milestone("round-1") or {})["pairs"] == 2
    ledger.close()


@pytest.fixture
def divided(crew, photos) -> Any:
    """A crew whose photos are of all splits: of six in a row four train, in two folds, and the last of them calibrates."""
    sides: Any = ("train", "train", "train", "train", "validation", "test")
    rows = [
        Row(s.sample_id, sides[n % 6], s.group, s.category, s.types, n % 2 if n % 6 < 4 else -1, n % 6 == 3)
        for n, s in enumerate(photos.samples)
    ]
    crew.manifest = make_manifest(rows, (), ())
    crew.train, crew.validation = crew.manifest.ids("train"), crew.manifest.ids("validation")
    crew.config = build_config({**crew.config.model_dump(), "downstream": {"base_steps": 0, "steps": 3}})
    return crew


def test_no_fold_model_sees_the_photos_that_it_judges_nor_pairs_made_of_their_objects(
    divided, photos
) -> None:
    def pair(reference: int, background: int) -> Any:
        names = photos.samples[reference].sample_id, photos.samples[background].sample_id
        made = assignment(0, reference=f"{names[0]}#0", background=names[1])
        return SimpleNamespace(task_id=made.task_id, attempt=SimpleNamespace(assignment=made))

    even, odd = pair(0, 8), pair(1, 7)
    mixed = pair(0, 7), pair(1, 8)
    found = {fold: (request, held) for request, _, held, fold in divided.folds([even, odd, *mixed], 0)}
    assert set(found) == {0, 1}
    for fold, allowed in ((0, odd), (1, even)):
        request, held = found[fold]
        assert held == [i for i in divided.train if divided.manifest.fold(i) == fold]
        assert set(request.sample_ids) == set(divided.train) - set(held) and request.pairs == (allowed,)


def test_calibration_photos_are_kept_from_the_generator_and_what_is_held_out_from_everybody(
    divided, photos
) -> None:
    """Bounds of the gate come from photos that the generator has not learned; validation is scored, and nothing else is done with it."""
    (divided.run.checkpoints / "generator-1").mkdir(parents=True)
    asked: dict[str, Any] = {}
    answers = {
        "train": Trained("generator-1", (0.5,)),
        "bank": "bank-1",
        "thresholds": Thresholds(()),
        "frames": {},
        "cut_off": set(),
        "fit": Fit("rev", (0.5,), 1.0),
        "evaluate": Evaluation({"pixel_ap": 0.4}, {}, 0.5, ()),
    }

    def answer(method: str, *given: Any) -> Any:
        asked[method] = given
        return answers[method]

    divided.generators, divided.extractor, divided.downstream = (Actors(answer) for _ in range(3))
    divided.coordinate = lambda made_of: asked.update(coordinator=made_of)
    ledger = Ledger(divided.run)
    divided.prepare(ledger)
    divided.assess(ledger, "real_only", pairs=[])
    ledger.close()

    def shown(targets: Any) -> set[str]:
        return {photos.target(name).sample_id for name in targets}

    train, calibration = set(divided.train), set(divided.manifest.calibration_ids())
    learned = train - calibration
    assert calibration and learned
    targets, normals = asked["train"]
    assert shown(targets) | set(normals) == learned
    _, targets, held_out = asked["thresholds"]
    assert shown(targets) <= learned and held_out and shown(held_out) <= calibration
    assert shown(asked["bank"][1]) <= train
    assert set(asked["frames"][0]) == set(asked["cut_off"][0]) == train
    _, targets, groups, backgrounds, *_, free = asked["coordinator"]
    assert (
        shown(targets) | set(groups) | set(free) | {i for own in backgrounds.values() for i in own} == train
    )
    assert set(backgrounds["metal"]) == train and not free, "too few normal photos to paint on alone"
    assert set(asked["fit"][0].sample_ids) == train
    assert asked["evaluate"][1] == divided.validation


def test_an_actor_keeps_the_counts_of_the_last_models_alone(crew, monkeypatch) -> None:
    """Of thousands of objects each takes tens of megabytes, and every round brings a candidate."""
    downstream = Downstream(crew.run, crew.config, crew.dataset)
    model = build_segmenter(crew.config.downstream, 0).eval()
    monkeypatch.setattr(downstream, "_load", lambda revision: model)
    (photo,) = [s.sample_id for s in crew.dataset.samples][:1]
    first = downstream._tally("rev-0", [photo])
    for number in range(1, TALLIES):
        downstream._tally(f"rev-{number}", [photo])
        assert downstream._tally("rev-0", [photo]) is first, "asked for in every round"
    downstream._tally("newest", [photo])
    known = [revision for revision, _ in downstream.tallies]
    assert len(known) == TALLIES and {"rev-0", "newest"} <= set(known) and "rev-1" not in known
