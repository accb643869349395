"""Repeat the loop over seeds: its test metrics against real-only; called by `jobs/benchmark.py loop`.

Both arms of a seed share start weights, the real batch of every step, and the number of optimiser steps and of crops;
where the loop has crops of pairs beside a batch, real-only has further ones of real targets. A seed redraws start
weights, batches, plans and pairs; the split and the generator stay (data.split_seed and generator.seed redraw those).
Its runs are its own, apart from those of jobs/loop.py, which may go on with other code and more rounds: what this code has completed
already is read, not repeated; what other code began or finished is refused. Over the seeds whose loop kept a model with pairs, the gain over as
many pasted copies, kept or not by the same rule (jobs/closing.py), is reported as well. --oracle (demo data only) adds an arm that trains on as many fresh procedural samples as the
loop accepted pairs: the share of its gain that the loop reaches is reported.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import torch
from scipy import special

from actors.crew import Crew
from actors.resources import code_hash
from cdiff.data.demo import fresh_samples
from cdiff.data.ledger import Ledger
from cdiff.downstream.scoring import score_photos
from cdiff.downstream.segmenter import build_segmenter, load_segmenter
from cdiff.downstream.training import batch_seed, fit, real_items, synthetic_item
from cdiff.errors import ConfigError, RunError
from cdiff.evaluation.protocol import best_iou_threshold, evaluate
from cdiff.types import QUARANTINED, Pair
from jobs.loop import loop
from jobs.quality_pool import Choice, made_of
from jobs.quality_summary import fidelity
from jobs.session import Session, open_session, parser
from jobs.telling import bracketed

GAINS = ("pixel_ap", "mdice", "f1_max", "iou")  # metrics of which differences are told
METRICS = ("pixel_ap", "f1_max", "auroc", "aupro", "iou", "mdice", "miou", "image_auroc")


def run(arguments: list[str], seeds: list[int], oracle: bool) -> tuple[dict[str, Any], str]:
    """All seeds, as one object and one line for a person.

    Raises:
        ConfigError: a setting that --seeds would overrule. Otherwise as of `run_seed`.
    """
    if any(word.startswith("seed=") for word in arguments):
        raise ConfigError("seed is this benchmark's to set: give --seeds.")
    result = summary([run_seed(arguments, seed, oracle) for seed in seeds], seeds)
    gain = result["gain"]["pixel_ap"]
    each = ", ".join(f"{value:+.4f}" for value in gain["per_seed"])
    mean = "undefined" if gain["mean"] is None else f"{gain['mean']:+.4f}"
    told = (
        mean
        if gain["low"] is None
        else f"{mean} {bracketed(gain['low'], gain['high'])}, 95 % interval over seeds"
    )
    return (
        result,
        f"pixel AP, loop minus real-only: {told} (each: {each or 'undefined'})",
    )


def run_seed(arguments: list[str], seed: int, oracle: bool) -> dict[str, Any]:
    """One run of the loop to its end; its closing event, with the oracle arm where asked for.

    Raises:
        RunError: the run is not what this command measures. ConfigError: an oracle of other data than the demo's. Or whatever ended the loop early.
    """
    own = [*arguments, f"seed={seed}"]
    with open_session(own, purpose=_purpose(own, seed), program="jobs/benchmark.py loop") as session:
        if session is None:
            raise ConfigError("--dry-run is of jobs/loop.py: it prints the same configuration.")
        if oracle and not session.demo:
            raise ConfigError(
                "--oracle trains on fresh samples of the demo's process, and the photos of --data have none. Leave it out, or leave --data and "
                "--config out for the demo data."
            )
        demand_comparable(session)
        with session.crew() as crew, session.tracker() as tracker:
            loop(session, crew, session.ledger, tracker)
            told = fidelity_of(crew, session.ledger)
        finished = session.ledger.closing()
        assert finished is not None, "the loop closes its run"
        if oracle:
            finished["test"]["oracle"] = oracle_scores(session, finished["pairs_accepted"])
    return finished | {"fidelity": told}


def _purpose(arguments: list[str], seed: int) -> str:
    """How a seed's run begins: a name that was given is the same for all seeds, and a run has one; names made from the configuration differ."""
    return f"loop-seed{seed}-" if parser().parse_intermixed_args(arguments).run else "loop-"


def demand_comparable(session: Session) -> None:
    """Return if the run is new, or was begun by this code and has no other rounds than are asked for.

    Raises:
        RunError: it was begun or finished by other code, or it has other rounds.
    """
    ledger, url, wanted = session.ledger, session.run.url, session.config.rounds
    session.demand_same_code("jobs")
    finished, done = ledger.closing(), len(ledger.rounds())
    if finished and finished["code"] != code_hash():  # somebody went on with jobs/loop.py --run
        raise RunError(
            f"{url} was finished by other code than this. Give another --home, or go back to its commit."
        )
    if done > wanted or (finished and done < wanted):
        state = f"was finished with rounds={done}" if finished else f"has {done} rounds already"
        raise RunError(f"{url} {state}; asked for is rounds={wanted}. Give rounds={done}, or another --home.")


def fidelity_of(crew: Crew, ledger: Ledger) -> dict[str, Any]:
    """How true to real targets the pairs of all rounds are, accepted or not, and why the gate turned others away.

    Returns:
        What `jobs.quality_summary.fidelity` tells of an arm, of the kept pairs that show a target; how many "pairs" these are; and
        "reasons", attempts by verdict.
    """
    kept = [pair for pair in ledger.kept_pairs(accepted_only=False) if pair.attempt.type]
    made = Choice(tuple(kept), counts=tuple(row for result in ledger.rounds() for row in result.counts))
    # nobody judged what killed its actor
    judged = replace(made, counts=tuple(row for row in made.counts if row[1] != QUARANTINED))
    told = fidelity([judged], [_distances(crew, ledger, kept)])
    return {"pairs": len(kept), **told, "reasons": dict(sorted(made.verdicts.items()))}


def _distances(crew: Crew, ledger: Ledger, kept: list[Pair]) -> dict[str, float | None]:
    """KID and coverage against the validation targets, which the generator never saw; from the ledger if measured before."""
    if not kept:
        return {}
    name = f"fidelity:{made_of(kept)}"
    if ledger.milestone(name) is None:
        generator = (ledger.milestone("generator") or {})["revision"]
        real = [target.target_id for target in crew.dataset.all_targets(crew.validation)]
        made = [pair.attempt for pair in kept]
        ledger.record(name, result=crew.extractor.call("fidelity", generator, real, made))
    return dict((ledger.milestone(name) or {})["result"])


def oracle_scores(session: Session, count: int) -> dict[str, Any]:
    """Test metrics of a fit on the real photos and as many fresh procedural samples as the loop accepted pairs."""
    found = session.ledger.milestone("oracle")
    if found is not None and found["count"] == count:  # with more rounds there are more
        return dict(found["scores"])
    config, settings = session.config, session.config.downstream
    torch.set_num_threads(config.resources.threads)  # as in the actors that fitted the other arms
    side = config.data.demo_side
    drawn = fresh_samples(count, config.seed, side)
    synthetic = [synthetic_item(sample.image, sample.mask, settings) for sample in drawn]
    seed = settings.seed + config.seed
    base = session.ledger.milestone("base")
    model = (
        load_segmenter(session.run.checkpoint(base["revision"])) if base else build_segmenter(settings, seed)
    )
    real = real_items(session.dataset, session.manifest.ids("train"), settings)
    fit(model, real, synthetic, settings, steps=settings.steps, seed=batch_seed(seed, bool(base)))
    validation, test = session.manifest.ids("validation"), session.manifest.ids("test")
    maps = score_photos(model, session.dataset, validation, settings)
    threshold = best_iou_threshold(maps, session.dataset, validation)
    scores = evaluate(score_photos(model, session.dataset, test, settings), session.dataset, test, threshold)
    session.ledger.record("oracle", scores=scores, count=count)
    return scores


def summary(finished: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """One object over all seeds: values per seed, and mean and spread of the gain. The caller adds where and how.

    An arm that some seed lacks is left out, and `seeds_without` names it: of a model of real photos alone there are no copies. So
    `gain_over_copies` is of the seeds whose loop kept pairs, which validation favoured there; it names them.
    """
    known = dict.fromkeys(arm for result in finished for arm in result["test"])
    lacking = {
        arm: [seed for seed, result in zip(seeds, finished, strict=True) if arm not in result["test"]]
        for arm in known
    }
    arms = [arm for arm in known if not lacking[arm]]
    test: dict[str, Any] = {}
    for arm in arms:
        scores = [result["test"][arm] for result in finished]
        test[arm] = {metric: [score[metric] for score in scores] for metric in METRICS}
        test[arm]["per_type"] = {
            key: {
                metric: [s["per_type"][key].get(metric) for s in scores]
                for metric in ("pixel_ap", "f1_max", "iou", "mdice")
            }
            for key in scores[0]["per_type"]
        }
    out = {
        "seeds": seeds,
        "a_seed_redraws": "start weights, batches, plans and pairs; split and generator are the same",
        "test": test,
        "gain": {metric: _gain(test, "loop", metric) for metric in GAINS},
        "seeds_without": {arm: without for arm, without in lacking.items() if without},
        "pairs": [result["pairs"] for result in finished],
        "pairs_accepted": [result["pairs_accepted"] for result in finished],
        "valid_share": [result["valid_share"] for result in finished],
        "fidelity": [result["fidelity"] for result in finished],
        "accepted_rounds": [result["accepted_rounds"] for result in finished],
        "best_round": [result["best_round"] for result in finished],
        # False: not kept on validation, real photos alone stand in; null: there are none, or an earlier version kept them unasked
        "copies_stand": [result.get("copies_stand") for result in finished],
        "seconds": [result["seconds"] for result in finished],
        "peak_memory_gb": max(result["peak_memory_gb"] for result in finished),
    }
    if "copy_paste" in known:
        out["gain_over_copies"] = _over_copies(finished, seeds)
    if "oracle" in arms:
        oracle = _gain(test, "oracle", "pixel_ap")
        out["gain_oracle"] = {metric: _gain(test, "oracle", metric) for metric in ("pixel_ap", "mdice")}
        shown = oracle["low"] is not None and oracle["low"] > 0  # by a gain near zero, any share follows
        out["share_of_oracle_gain"] = out["gain"]["pixel_ap"]["mean"] / oracle["mean"] if shown else None
    return out


def _over_copies(finished: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The gain over copies, of the seeds that have them."""
    had = [
        (seed, result["test"])
        for seed, result in zip(seeds, finished, strict=True)
        if "copy_paste" in result["test"]
    ]
    test = {
        arm: {metric: [scores[arm][metric] for _, scores in had] for metric in GAINS}
        for arm in ("loop", "copy_paste")
    }
    gains = {metric: _gain(test, "loop", metric, "copy_paste") for metric in GAINS}
    return {"of": "seeds whose loop kept pairs", "seeds": [seed for seed, _ in had]} | gains


def _gain(test: dict[str, Any], arm: str, metric: str, over: str = "real_only") -> dict[str, Any]:
    """Mean and spread over seeds, and the 95 % interval of the mean by Student's t: over seeds alone, of given photos."""
    pairs = zip(test[arm][metric], test[over][metric], strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return {"mean": None, "sd": None, "low": None, "high": None, "per_seed": []}
    mean, out = statistics.mean(differences), {"low": None, "high": None}
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    if spread is not None:
        count = len(differences)
        half = float(special.stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)
        out = {"low": mean - half, "high": mean + half}
    return {"mean": mean, "sd": spread, **out, "per_seed": differences}
