"""Do aimed pairs pay? Control arms at equal pairs and equal optimiser steps; called by `jobs/benchmark.py quality`.

Per split: one generator, one pool of candidates for all arms and seeds. Per seed: a base of real photos, cross-fitted fold
models that rank weaknesses, the base's loss on every candidate, and one further fit of every arm from the base:

    real_only    further crops of real targets where the other arms see pairs
    again        real_only with other such crops: what chance alone does (its difference to real_only must hold zero)
    copy_paste   real targets pasted on other photos, as undirected, through the same gate
    perlin       textures blended in by Perlin noise (DRAEM)
    undirected   generated pairs in proportion to the real targets, any difficulty
    wasm         generated pairs for the ranked slices, within the difficulty bands
    mined_B0 ..  a round of the loop under each mining arm, for comparing these with each other (not by default)
    wasm_NAME    aimed under other settings (--variant): what ranking, budget, band or gate are worth

All start from the same weights and see the same real batches, for equally many steps and crops. Everything is a call of
some minutes whose result the ledger of the split's run keeps: the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.config import Config
from cdiff.data.ledger import Ledger
from cdiff.data.run import Run
from cdiff.errors import ConfigError
from cdiff.evaluation.tally import Tally
from cdiff.types import Revisions, content_hash
from jobs.quality_choices import LONG, MADE, choices
from jobs.quality_pool import Choice, Key, made_of

ARMS = ("real_only", "again", "copy_paste", "perlin", "undirected", "wasm")
PLAIN = ("real_only", "copy_paste")  # arms that may run on


@dataclass(frozen=True)
class Wishes:
    """What is compared."""

    arms: Sequence[str]
    look: str = "test"  # or "validation", while anything is still being chosen
    # seeds whose arms without a generator run on for as long as the aimed one takes in all ...
    long: Sequence[int] = ()
    most_fits: int = 0  # ... for as many fits at most; 0: no bound
    variants: Mapping[str, Config] = field(default_factory=dict)  # further aimed arms: their configurations


@dataclass
class SplitResult:
    """All that was measured on one split."""

    run: Run
    split: int
    split_hash: str
    seeds: tuple[int, ...]
    base_steps: int
    steps: int
    choices: dict[Key, Choice] = field(default_factory=dict)
    validation: dict[Key, Evaluation] = field(default_factory=dict)
    scores: dict[Key, Evaluation] = field(default_factory=dict)  # on the photos that were asked for
    revisions: dict[Key, str] = field(default_factory=dict)  # of the fitted models
    fidelity: dict[Key, dict[str, float | None]] = field(default_factory=dict)
    # by seed, revisions of the models of real photos alone, from base to longest fit
    stages: dict[int, list[str]] = field(default_factory=dict)
    # of real photos alone by seed: steps, and scores on validation
    curve: dict[int, list[tuple[int, Evaluation]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    look: str = "test"
    photos: str = ""  # hash of which photos train, validate and test: given folders are the same for any seed of the split
    pairs: int = 0  # that each arm should have
    cycles: int = 1  # fits of the arms that ran on ...
    equal_fits: int = 1  # ... of as many as the aimed arm's time is worth

    def tally(self, arm: str, seed: int, swapped: bool = False) -> Tally:
        """Pixel counts of an arm's model."""
        name = _tally_name(self.look, self.revisions[arm, seed])
        return Tally.load(self.run.tally(name + "-swapped" * swapped))


def measure_split(
    crew: Crew, ledger: Ledger, split: int, seeds: Sequence[int], wishes: Wishes
) -> SplitResult:
    """Fit and score all arms of all seeds of one split.

    Raises:
        ConfigError: the profile has no base of real photos to go on from.
    """
    config = crew.config
    if not config.downstream.base_steps:
        raise ConfigError(
            "the arms go on from one base of real photos per seed: set downstream.base_steps, best where real photos "
            "alone gain no more (the page of a first benchmark shows their curve)."
        )
    fit = config.downstream
    result = SplitResult(
        crew.run, split, crew.manifest.hash, tuple(seeds), fit.base_steps, fit.steps, look=wishes.look
    )
    result.photos = content_hash([crew.train, crew.validation, crew.manifest.ids("test")])
    result.pairs = config.wasm.pairs
    revisions = crew.prepare(ledger) if set(wishes.arms) & set(MADE) else None
    base = _bases(crew, ledger, seeds)
    result.choices = choices(crew, ledger, revisions, base, wishes.arms, wishes.variants)
    requests = {key: _request(crew, key[1], base, choice) for key, choice in result.choices.items()}
    fits = _fit(crew, ledger, "fit", requests, f"split {split}: fitting arms")
    result.seconds = _seconds(ledger, config, fits)
    if "real_only" in wishes.arms:
        result.stages = {seed: [base[seed], fits["real_only", seed].revision] for seed in seeds}
    if wishes.long and "wasm" in wishes.arms:
        fits |= _run_on(crew, ledger, result, requests, fits, wishes)
    _score(crew, ledger, result, fits)
    if revisions is not None:
        _compare_features(crew, ledger, revisions, result)
    return result


def _fit(
    crew: Crew, ledger: Ledger, prefix: str, requests: Mapping[Key, FitRequest], label: str
) -> dict[Key, Fit]:
    names = {key: f"{prefix}:{key[0]}:{key[1]}:{made_of(request.pairs)}" for key, request in requests.items()}
    found = crew.each(ledger, "fit", {names[key]: (requests[key],) for key in requests}, Fit, label)
    return {key: found[name] for key, name in names.items()}


def _run_on(
    crew: Crew,
    ledger: Ledger,
    result: SplitResult,
    requests: Mapping[Key, FitRequest],
    fits: Mapping[Key, Fit],
    wishes: Wishes,
) -> dict[Key, Fit]:
    """Equal computing: arms without a generator go on, fit after fit, until they took what the aimed arm takes in all.

    Each further fit is one like the first, with batches of its own.
    """
    result.equal_fits = 1 + max(1, round(result.seconds["aimed_extra"] / result.seconds["fit"]))
    result.cycles = min(result.equal_fits, wishes.most_fits or result.equal_fits)
    seeds = [seed for seed in result.seeds if seed in wishes.long]
    mine = {(arm, seed): fits[arm, seed] for arm in PLAIN for seed in seeds if (arm, seed) in fits}
    for cycle in range(1, result.cycles):
        further = {
            (f"{arm}{LONG}", seed): replace(requests[arm, seed], start=fit.revision, cycle=cycle)
            for (arm, seed), fit in mine.items()
        }
        done = _fit(
            crew, ledger, f"long:{cycle}", further, f"equal computing, fit {cycle + 1} of {result.cycles}"
        )
        mine = {(arm.removesuffix(LONG), seed): fit for (arm, seed), fit in done.items()}
        for seed in (seed for arm, seed in mine if arm == "real_only"):
            result.stages[seed].append(mine["real_only", seed].revision)
    for arm, seed in mine:
        result.choices[f"{arm}{LONG}", seed] = result.choices[arm, seed]
    return {(f"{arm}{LONG}", seed): fit for (arm, seed), fit in mine.items()}


def _bases(crew: Crew, ledger: Ledger, seeds: Sequence[int]) -> dict[int, str]:
    """Revision of the model of real photos alone that all arms of a seed go on from."""
    steps = crew.config.downstream.base_steps
    work = {f"base:{seed}": (FitRequest(tuple(crew.train), steps, seed, base=True),) for seed in seeds}
    fits = crew.each(ledger, "fit", work, Fit, "fitting bases")
    return {seed: fits[f"base:{seed}"].revision for seed in seeds}


def _request(crew: Crew, seed: int, base: Mapping[int, str], choice: Choice) -> FitRequest:
    steps = crew.config.downstream.steps
    return FitRequest(
        tuple(crew.train), steps, seed, base[seed], choice.pairs, choice.perlin, again=choice.again
    )


def _score(crew: Crew, ledger: Ledger, result: SplitResult, fits: Mapping[Key, Fit]) -> None:
    """Score on validation, which gives the threshold of IoU and the curve over steps; then read the test split, once per model."""
    result.revisions = {key: fit.revision for key, fit in fits.items()}
    models = sorted(set(result.revisions.values()))
    stages = {model for own in result.stages.values() for model in own}
    known = _weighed(crew, ledger, result, "validation", dict.fromkeys(sorted({*models, *stages})))
    for seed, own in result.stages.items():
        at = [result.base_steps + number * result.steps for number in range(len(own))]
        result.curve[seed] = [(steps, known[model]) for steps, model in zip(at, own, strict=True)]
    found = known
    if result.look != "validation":
        found = _weighed(crew, ledger, result, result.look, {m: known[m].threshold for m in models})
    for key, model in result.revisions.items():
        result.validation[key], result.scores[key] = known[model], found[model]


def _weighed(
    crew: Crew, ledger: Ledger, result: SplitResult, look: str, thresholds: Mapping[str, float | None]
) -> dict[str, Evaluation]:
    """Scores of models on one split; the threshold of IoU is given, or chosen on this very split."""
    ids = list(crew.manifest.ids(look))
    names = {model: f"weighed:{look}:{model}" for model in thresholds}
    work = {names[m]: (m, ids, threshold, _tally_name(look, m)) for m, threshold in thresholds.items()}
    found = crew.each(ledger, "weigh", work, Evaluation, f"split {result.split}: scoring on {look}")
    return {model: found[name] for model, name in names.items()}


def _compare_features(crew: Crew, ledger: Ledger, revisions: Revisions, result: SplitResult) -> None:
    """Fidelity of each arm's pairs against validation targets, which the generator never saw."""
    real = [target.target_id for target in crew.dataset.all_targets(crew.validation)]
    for (arm, seed), choice in result.choices.items():
        name = f"fidelity:{arm}:{seed}:{made_of(choice.pairs)}"
        if arm.endswith(LONG):
            continue
        if choice.pairs and ledger.milestone(name) is None:
            attempts = [pair.attempt for pair in choice.pairs]
            ledger.record(name, result=crew.extractor.call("fidelity", revisions.generator, real, attempts))
        result.fidelity[arm, seed] = (ledger.milestone(name) or {"result": {}})["result"]


def _seconds(ledger: Ledger, config: Config, fits: Mapping[Key, Fit]) -> dict[str, float]:
    """What arms cost, in seconds of one actor.

    Beside its last fit, the aimed arm takes the generator's training, all candidates of the pool, the fold models, and the
    probes where there are any. Not counted, as it is small: token bank, thresholds, and a pass of the segmenter over the candidates.
    """
    trained = ledger.milestone("generator") or {}
    found = {
        event["name"]: event["seconds"]
        for event in ledger.events()
        if str(event.get("name", "")).startswith("pool:candidates")
    }
    probed = sum(seconds for name, seconds in found.items() if name.startswith("pool:candidates from "))
    pool = max(float(found.get("pool:candidates", 0.0)), probed)  # probes choose from the same candidates
    downstream, wasm = config.downstream, config.wasm
    plain = [fit.seconds for (arm, _), fit in fits.items() if arm in PLAIN] or [
        f.seconds for f in fits.values()
    ]
    fit = max(sum(plain) / len(plain), 1e-3)
    folds = (
        wasm.folds
        * downstream.fold_share
        * (downstream.base_steps + downstream.steps)
        / downstream.steps
        * fit
    )
    told = {
        "fit": fit,
        "generator": float(trained.get("trained_in", 0.0)) * trained.get("workers", config.train.workers),
        "folds": folds,
        "candidates": pool,
        "probes": (1 + max(1, len(wasm.start_strengths))) * wasm.probe_steps / downstream.steps * fit,
    }
    return told | {"aimed_extra": sum(value for name, value in told.items() if name != "fit")}


def _tally_name(look: str, revision: str) -> str:
    return f"{look}-{revision}"
