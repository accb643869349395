"""Settings of a loop that is over in a minute: everything real, everything tiny."""

import pytest

TINY = [
    "rounds=2",
    "data.demo_images=14",
    "data.demo_side=64",
    "generator.resolution=32",
    "generator.channels=[16,32]",
    "generator.attention_levels=1",
    "generator.steps=30",
    "generator.batch=4",
    "safe.channels=[16,32]",
    "safe.dim=32",
    "sampling.steps=4",
    "downstream.longest_side=64",
    "downstream.crop=32",
    "downstream.base_steps=10",
    "downstream.steps=25",
    "downstream.batch=4",
    "wasm.pairs=8",
    "wasm.arm=B3+B2",  # the arms that learn anew each round
    "wasm.miner_steps=3",
    "wasm.token_steps=3",
    "wasm.negatives=0.25",
    "wasm.shard=4",
    "wasm.min_targets=4",
]


@pytest.fixture(scope="session")
def tiny_loop() -> list[str]:
    return TINY
