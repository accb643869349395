"""A small real data set and a small real generator, trained for a moment, and a run that is served."""

import base64
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# No test may reach a cluster, a bucket, an MLflow or a hub that a developer's shell names. Before the other imports: some libraries read these only then.
if _own := [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_", "CDIFF_", "AWS_", "HF_"))]:
    for _name in _own:
        del os.environ[_name]

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.run import Run
from cdiff.generator.model import Generator
from cdiff.generator.training import train_generator
from cdiff.types import MaskFile, Sample

ROOT = Path(__file__).resolve().parents[1]

# Ray notes once per process whether clusters ask for tokens: clusters of tests in one process must not differ in it.
# Processes that tests start as a user would, without this variable, have tokens as Ray gives them.
os.environ["RAY_AUTH_MODE"] = "disabled"
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
    "wasm.probe_steps=8",
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


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray with four CPUs and no GPU, whatever the machine has: for a file, since starting it takes seconds, and left running it would slow the files after it."""
    import ray  # here: most tests do without it

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


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
def checkpoint(tmp_path_factory) -> Path:
    """Stable Diffusion 1.5 in small, with random weights: a diffusers folder as its pipeline writes it."""
    return write_checkpoint(tmp_path_factory.mktemp("sd"), 4)


@pytest.fixture(scope="session")
def clip_encoder(tmp_path_factory) -> Path:
    """A CLIP image encoder in small, with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    sizes: Any = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **sizes)).save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, channels: int, **schedule: Any) -> Path:
    """Save a pipeline of one block of everything; the autoencoder shrinks by 8, as the real one does."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(words), max_position_embeddings=8, **ids, **sizes)  # type: ignore[arg-type]
    )
    noise = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **schedule
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=8)
    pipeline: Any = StableDiffusionPipeline(
        vae, text, tokenizer, unet, noise, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "sd", safe_serialization=True)
    return folder / "sd"


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

    for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):  # they go before or with those below
        monkeypatch.delenv(name, raising=False)
    for name, value in (S3 | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    clients.cache_clear()
    yield "s3://cdiff"
    clients.cache_clear()


@pytest.fixture(scope="session")
def tiny_loop() -> list[str]:
    return LOOP


@pytest.fixture(scope="session")
def served_run(tmp_path_factory, photos, tiny_config, tiny_generator):
    """A run with a trained generator, as the service finds it."""
    from cdiff.data.manifest import Row, make_manifest

    rows = [
        Row(s.sample_id, "train", s.group, s.category, s.types, number % 2, False)
        for number, s in enumerate(photos.samples)
    ]
    manifest = make_manifest(rows, (), ())
    return write_run(tmp_path_factory.mktemp("served"), photos, manifest, tiny_generator, tiny_config, "pit")


def write_run(home: Path, photos: Dataset, manifest: Any, generator: Generator, config: Config, kind: str):
    """A run whose only round kept three pairs of a type of the category metal."""
    from cdiff.config_file import dump_config
    from cdiff.data.carriers import to_json
    from cdiff.data.ledger import Ledger
    from cdiff.data.manifest import write_manifest
    from cdiff.data.store import create_run
    from cdiff.wasm.quality import Thresholds

    run = create_run(home, "one", dump_config(config), manifest)
    write_manifest(manifest, run.splits_path)
    bank = generator.bank(photos, photos.all_targets(manifest.ids("train")))
    bank.save(run.checkpoints / f"{bank.revision}.safetensors")
    ledger = Ledger(run)
    ledger.record("generator", revision=generator.save(run.checkpoints))
    ledger.record("extractor", bank=bank.revision, thresholds=to_json(Thresholds((("visible", "", 0.01),))))
    _commit_round(run, ledger, photos, generator, bank, config, kind)
    ledger.close()
    return run


def _commit_round(run, ledger, photos, generator, bank, config, kind) -> None:
    from cdiff.service.requests import PairRequest
    from cdiff.service.studio import Studio
    from cdiff.types import Assignment, Decision, Pair, RoundResult
    from cdiff.wasm.mining import Miners
    from cdiff.wasm.production import produce_shard

    tickets = Studio(run, photos).tickets(PairRequest(type=kind, n=3))
    plan = [Assignment(ticket.task, f"metal/{kind}", "uniform", i) for i, ticket in enumerate(tickets)]
    made = produce_shard(plan, run, generator, bank, Miners(), photos, config)
    decision = Decision(True, "better", 0.1, 0.0, 0.2, 0.9)
    result = RoundResult(1, (), (), 3, ((f"metal/{kind}", "kept", 3),), "rev", (), decision, ())
    ledger.commit_round(result, [Pair(attempt, "") for attempt in made])


@pytest.fixture(scope="session")
def studio(served_run, photos):
    from cdiff.service.studio import Studio

    return Studio(served_run, photos)


def png(array: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def sent() -> dict[str, str]:
    """A photo, a mask of its size, and one of another, base64."""
    rng = np.random.default_rng(5)
    photo = rng.integers(90, 150, (70, 90, 3)).astype(np.uint8)
    mask = np.zeros((70, 90), np.uint8)
    mask[30:42, 40:60] = 255
    mask[50:54, 44:50] = 255  # a second piece of the same target
    return {
        "photo": b64(png(photo)),
        "mask": b64(png(mask)),
        "other": b64(png(mask[:60])),
        "empty": b64(png(mask * 0)),
    }


class Direct:
    """A backend that asks a studio itself; it can be told to be busy, late or broken."""

    def __init__(self, studio: Any, run: Run) -> None:
        from actors import door  # here: most tests do without FastAPI
        from cdiff.service.review import Review

        self.studio, self.trouble, self.door = studio, None, door
        self.review = Review(run)

    def _check(self, model: str | None, request: Any = None) -> None:
        if self.trouble:
            raise self.trouble
        if model not in (None, "one"):
            raise self.door.NoModel
        if request is not None:
            from cdiff.data.images import Limits
            from cdiff.service.uploads import check_pictures

            check_pictures(request, Limits.of(self.studio.config.data))

    async def pairs(self, model, request):
        self._check(model, request)
        rows = self.studio.make(self.studio.tickets(request))
        return "one", rows, [self.studio.reason(row) for row in rows]

    async def mask(self, model, request):
        self._check(model, request)
        return "one", self.studio.read_mask(request)

    async def segment(self, model, request):
        self._check(model, request)
        if not self.studio.has_segmenter:
            raise self.door.NotYet("this model has no segmenter")
        return "one", *self.studio.segment(request)

    async def types(self, model):
        from cdiff.service.requests import TypeAnswer

        self._check(model)
        return [TypeAnswer(category=c, type=t, targets=n) for (c, t), n in self.studio.types.items()]

    async def ready(self):
        self._check(None)

    async def kept(self, model, offset, limit):
        self._check(model)
        return self.review.kept("one", offset, limit)

    async def picture(self, model, task_id, part):
        self._check(model)
        return self.review.picture(task_id, part)

    async def judge(self, model, request):
        self._check(model)
        made = None
        if request.made and request.accepted and not self.review.knows(request.task_id):
            from cdiff.service.adoption import demand_unseen, human_pair

            studio = self.studio
            demand_unseen(request.made, studio.dataset, studio.manifest, studio.config.data)
            made = human_pair(studio, request.made, request.task_id)
        self.review.judge(request, made)

    async def models(self):
        from cdiff.service.requests import ModelAnswer

        self._check(None)
        return [ModelAnswer(model="one", revisions={}, resolution=32, mode="joint", strengths={})]


@pytest.fixture
def mlflow_away(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Within what it gives, MLflow's store answers nobody."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def silent(*_: Any, **__: Any) -> None:
        raise MlflowException("no answer")

    @contextmanager
    def away() -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in (
                "log_batch",
                "log_artifact",
                "log_text",
                "log_image",
                "search_runs",
                "set_terminated",
            ):
                patch.setattr(MlflowClient, name, silent)
            yield

    return away


@pytest.fixture
def judged_run(served_run, tmp_path) -> Run:
    """A copy of the served run for one test alone: what is said of its pairs stays in it."""
    copy = Run(tmp_path / served_run.path.name)
    shutil.copytree(served_run.path, copy.path)
    return copy


@pytest.fixture
def backend(studio, judged_run) -> Direct:
    return Direct(studio, judged_run)
