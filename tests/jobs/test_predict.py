"""Which segmenter of a run predicts."""

import dataclasses

import pytest

from actors.crew import Assessed
from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.ledger import Ledger
from cdiff.data.store import create_run
from cdiff.errors import RunError
from cdiff.types import Decision, RoundResult
from tests.jobs.test_export import Splits


def test_the_best_model_predicts_and_not_the_last_accepted_one(tmp_path):
    run = create_run(tmp_path / "home", "one", dump_config(Config()), Splits())
    with pytest.raises(RunError, match="no segmenter yet"):
        Ledger(run).best_segmenter()
    ledger = Ledger(run)
    real_only = Assessed("rev-0", {"pixel_ap": 0.5}, 0.3, (), 1.0, ())
    ledger.record("real_only", assessed=real_only)
    assert Ledger(run).best_segmenter() == ("rev-0", 0.3)
    for number, gain, chance in ((1, 0.02, 0.7), (2, -0.01, 0.2)):
        ledger.record(f"round-{number}", assessed=dataclasses.replace(real_only, revision=f"rev-{number}"))
        decision = Decision(True, "", gain, -0.1, 0.1, chance)
        ledger.commit_round(RoundResult(number, (), (), 0, (), f"rev-{number}", (), decision, ()), [])
    ledger.close()
    assert Ledger(run).best_segmenter() == ("rev-1", 0.3)
