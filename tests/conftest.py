"""A small real data set and a small real generator, trained for a moment."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.generator.model import Generator
from cdiff.generator.training import train_generator
from cdiff.types import MaskFile, Sample

torch.set_num_threads(1)  # as in the actors; more threads wait for each other as soon as something else runs

TINY = [
    "generator.resolution=32",
    "generator.channels=[16,32]",
    "generator.attention_levels=1",
    "generator.steps=6",
    "generator.batch=4",
    "generator.checkpoint_every=3",
    "safe.channels=[16,32]",
    "safe.dim=32",
    "sampling.steps=4",
    "sampling.micro_batch=3",
]


# Settings of a loop that is over in a minute: everything real, everything tiny.
LOOP = [
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
S3 = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}


def write_photos(folder: Path, count: int = 6) -> list[Sample]:
    """Grey textures with a dark square or a bright bar each, and as many normals."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(2 * count):
        kind = ("pit", "bar")[number % 2] if number < count else ""
        image = rng.integers(90, 150, (80, 96, 3)).astype(np.uint8)
        mask = np.zeros((80, 96), bool)
        x, y = rng.integers(20, 60, 2)
        if kind == "pit":
            mask[y : y + 14, x : x + 14] = True
            image[mask] = 20
        elif kind == "bar":
            mask[y : y + 4, x : x + 26] = True
            image[mask] = 235
        name = f"metal/{kind or 'good'}/{number:03d}"
        path, mask_path = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(image).save(path)
        Image.fromarray(mask).save(mask_path)
        masks = (MaskFile(str(mask_path), ((-1, kind),)),) if kind else ()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(
            Sample(
                name, "metal", (kind,) if kind else (), str(number), str(path), masks, 96, 80, "RGB", digest
            )
        )
    return samples


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return load_config(None, TINY)


@pytest.fixture(scope="session")
def photos(tmp_path_factory, tiny_config) -> Dataset:
    return Dataset(write_photos(tmp_path_factory.mktemp("photos")), tiny_config.data)


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory, photos, tiny_config) -> Generator:
    folder = tmp_path_factory.mktemp("checkpoints")
    ids = [sample.sample_id for sample in photos.samples]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    trained = train_generator(photos, photos.all_targets(ids), normals, tiny_config, folder)
    return Generator.load(folder / trained.revision)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on loopback that keeps everything in memory, with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=S3["AWS_REGION"],
        aws_access_key_id=S3["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="cdiff", CreateBucketConfiguration={"LocationConstraint": S3["AWS_REGION"]})
    yield url
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Iterator[str]:
    """s3:// URL of a bucket; the environment says where it is and who asks."""
    from cdiff.data.s3 import clients

    for name, value in (S3 | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    clients.cache_clear()
    yield "s3://cdiff"
    clients.cache_clear()


@pytest.fixture(scope="session")
def tiny_loop() -> list[str]:
    return LOOP
