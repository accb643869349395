"""Repeat the loop over seeds: its test metrics against real-only; called by `jobs/benchmark.py loop`.

Both arms of a seed share start weights, the real batch of every step, and the number of optimiser steps and of crops;
where the loop has crops of pairs beside a batch, real-only has further ones of real targets. A seed redraws start
weights, batches, plans and pairs; the split and the generator stay (data.split_seed and generator.seed redraw those).
Runs that this code has completed already are read, not repeated. --oracle (demo data only) adds an arm that trains on
as many fresh procedural samples as the loop accepted pairs: the share of its gain that the loop reaches is reported.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from actors.resources import code_hash
from cdiff.data.demo import fresh_samples
from cdiff.downstream.scoring import score_photos
from cdiff.downstream.segmenter import build_segmenter, load_segmenter
from cdiff.downstream.training import batch_seed, fit, real_items, synthetic_item
from cdiff.errors import RunError
from cdiff.evaluation.protocol import best_iou_threshold, evaluate
from jobs.loop import main as run_loop
from jobs.session import Session, open_session

METRICS = ("pixel_ap", "f1_max", "auroc", "aupro", "iou", "mdice", "miou", "image_auroc")


def run(arguments: list[str], seeds: list[int], oracle: bool) -> tuple[dict[str, Any], str]:
    """All seeds, as one object and one line for a person."""
    result = summary([run_seed(arguments, seed, oracle) for seed in seeds], seeds)
    gain = result["gain"]["pixel_ap"]
    return result, f"pixel AP, loop minus real-only: {gain['mean']:+.4f} (per seed {gain['per_seed']})"


def run_seed(arguments: list[str], seed: int, oracle: bool) -> dict[str, Any]:
    """One run of the loop to its end; its closing event, with the oracle arm where asked for.

    Raises:
        RunError: the loop ended early, or was run to its end by other code.
    """
    own = [*arguments, f"seed={seed}"]
    code = run_loop(own)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise RunError(f"the loop of seed {seed} ended with exit code {code}; its message stands above.")
    with open_session(own) as session:
        assert session is not None
        finished = session.ledger.closing()
        if finished is None:
            raise RunError(f"{session.run.url} has no closing event. Run the loop again to finish it.")
        if finished["code"] != code_hash():  # a run that was complete already
            raise RunError(
                f"{session.run.url} was made by other code than this. Give another --home, or go back to its commit."
            )
        if oracle:
            found = session.ledger.milestone("oracle") or _oracle(session, finished["pairs_accepted"])
            finished["test"]["oracle"] = found["scores"]
    return finished


def _oracle(session: Session, count: int) -> dict[str, Any]:
    """Fit on the real photos and as many fresh procedural samples as the loop kept pairs."""
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
    return {"scores": scores}


def summary(finished: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """One object over all seeds: values per seed, and mean and spread of the gain. The caller adds where and how."""
    arms = list(finished[0]["test"])
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
        "gain": {metric: _gain(test, "loop", metric) for metric in ("pixel_ap", "mdice", "f1_max", "iou")},
        "pairs": [result["pairs"] for result in finished],
        "pairs_accepted": [result["pairs_accepted"] for result in finished],
        "valid_share": [result["valid_share"] for result in finished],
        "accepted_rounds": [result["accepted_rounds"] for result in finished],
        "best_round": [result["best_round"] for result in finished],
        "seconds": [result["seconds"] for result in finished],
        "peak_memory_gb": max(result["peak_memory_gb"] for result in finished),
    }
    if "oracle" in arms:
        oracle = _gain(test, "oracle", "pixel_ap")
        out["gain_oracle"] = {metric: _gain(test, "oracle", metric) for metric in ("pixel_ap", "mdice")}
        out["share_of_oracle_gain"] = (
            out["gain"]["pixel_ap"]["mean"] / oracle["mean"] if oracle["mean"] else None
        )
    return out


def _gain(test: dict[str, Any], arm: str, metric: str) -> dict[str, Any]:
    pairs = zip(test[arm][metric], test["real_only"][metric], strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return {"mean": None, "sd": None, "per_seed": []}
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    return {"mean": statistics.mean(differences), "sd": spread, "per_seed": differences}
