"""The benchmark of many pairs and workers, at tiny sizes."""

import argparse
import json
import time

import numpy as np
import pytest

from jobs import scale
from jobs.scale_dispatch import Futures, Worker, in_process
from jobs.scale_steps import STEPS, OverLimit, Steps, limited
from jobs.scale_world import World


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


SMALL = ["data.demo_images=12", "data.demo_side=64", "wasm.shard=8"]


@pytest.fixture(scope="module")
def told(home):
    found = {}
    Steps(home, 40, 60.0, STEPS, lambda step, result: found.update({step: result}), SMALL).all()
    return found


def test_every_step_is_measured(told):
    assert list(told) == list(STEPS)
    assert all(found["seconds"] > 0 and found["peak_rss_mb"] > 0 for found in told.values())
    assert told["plan"]["tasks"] == sum(told["judge"]["verdicts"].values()) == 40
    assert told["write"]["shards"] == 5 and told["write"]["files"] == 10


def test_bytes_of_metadata_and_pictures_are_those_on_disk(home, told):
    files = [path for path in (home / "runs" / "scale-40" / "pairs").iterdir() if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    write = told["write"]
    assert on_disk == pytest.approx(
        40 * (write["metadata_bytes_per_pair"] + write["picture_bytes_per_pair"]), abs=40
    )
    ledger = (home / "runs" / "scale-40" / "ledger.jsonl").stat().st_size
    assert told["replay"]["bytes_per_pair"] == pytest.approx(ledger / 40, abs=0.01)


def test_attempts_are_those_of_the_plan_and_differ(home):
    world = World(home, 30, SMALL)
    plan = world.plan(quick=True)
    attempts = list(world.attempts(plan))
    assert [attempt.assignment for attempt in attempts] == plan
    assert len({attempt.fingerprint for attempt in attempts}) == 30
    assert [name for name, _ in attempts[0].measures] == sorted(name for name, _ in attempts[0].measures)


def test_a_step_that_takes_too_long_is_given_up():
    def endless() -> None:
        with limited(0.05):
            while True:
                np.ones(1000).sum()

    with pytest.raises(OverLimit):
        endless()
    with limited(0.05):
        time.sleep(0.1)  # no time of the processor


def test_the_exponent_tells_linear_from_quadratic():
    sizes = {
        str(n): {"plan": {"seconds": 1, "cpu_s": 2e-4 * n}, "judge": {"seconds": 1, "cpu_s": 1e-6 * n * n}}
        for n in (1000, 10_000, 100_000)
    }
    sizes["1000000"] = {"plan": {"seconds": 1, "cpu_s": 200.0}, "judge": {"stopped_after_s": 60.0}}
    found = scale.exponents(sizes)
    assert found["plan"] == pytest.approx(1, abs=0.01) and found["judge"] == pytest.approx(2, abs=0.01)


def test_workers_serve_one_call_after_the_other():
    cluster = Futures()
    worker = Worker(0.02, cluster)
    began = time.perf_counter()
    calls = [worker.serve.remote(0.02) for _ in range(3)]
    done: list[float] = []
    while len(done) < 3:
        for future in cluster.wait(calls, num_returns=3, timeout=1.0)[0]:
            assert cluster.get(future) == 0.02
            done.append(time.perf_counter() - began)
    assert done == sorted(done) and done[-1] >= 0.06


def test_a_group_on_futures_cannot_beat_its_workers():
    (found,) = in_process(4, [(0.01, 0.01)], seconds=1.0)
    assert 0 < found["efficiency"] <= 1.05  # the window begins and ends with a call
    assert found["calls"] >= 8 and found["driver_limit_calls_per_s"] > found["calls_per_s"]


def test_what_was_measured_is_kept_until_all_is(tmp_path):
    about, out = {"commit": "abc"}, tmp_path / "scale.json"
    first = scale.Kept(out, about)
    first.tell("10", "plan", {"seconds": 1.0})
    assert scale.Kept(out, about).of("10") == {"plan": {"seconds": 1.0}}
    assert scale.Kept(out, {"commit": "other"}).of("10") == {}, "another commit is measured anew"
    first.forget()
    assert scale.Kept(out, about).of("10") == {}


def test_an_earlier_result_stands_beside_the_new_one(tmp_path):
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"pairs": {}}))
    parser = argparse.ArgumentParser()
    scale.add_options(parser)
    out = tmp_path / "scale.json"
    args = parser.parse_args(
        ["--pairs", "--workers", "--in-process", "2", "--service", "0.01", "--seconds", "0.1"]
        + ["--before", str(before), "--out", str(out)]
    )
    result, line = scale.run(["--home", str(tmp_path)], args, {"commit": "abc"})
    assert result["before"] == {"pairs": {}} and result["pairs"] == {}
    assert [point["workers"] for point in result["dispatch"]["in_process"]] == [2]
    assert "calls/s" in line
