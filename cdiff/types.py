"""The frozen carriers that cross between parts and processes. No tensors, no behaviour beyond naming.

Coordinates are pixels of the photo; boxes are (left, top, right, bottom), right and bottom exclusive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Box = tuple[int, int, int, int]
Split = Literal["train", "validation", "test"]
Mode = Literal["joint", "mask_first", "given_mask", "negative"]
Arm = Literal["B0", "B1", "B2", "B3", "B4", "B3+B1", "B3+B2"]
# human: people made it with the service, and accepted it
Purpose = Literal["uniform", "easy", "weak", "negative", "human"]
UPLOAD = "upload/"  # so begin the ids of photos that people brought to the service


def content_hash(value: Any) -> str:
    """Stable 16-digit hex hash of a carrier, a mapping or a list of them."""
    return hashlib.sha256(_HASHED.encode(value).encode()).hexdigest()[:16]


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _plain(item: Any) -> Any:
    # Not dataclasses.asdict: it copies all that is inside, and a task is hashed at each of a dozen steps.
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {name: getattr(item, name) for name in _fields(type(item))}
    return str(item)


_HASHED = json.JSONEncoder(default=_plain, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class MaskFile:
    """Where the mask of a photo lies and what its values mean."""

    path: str
    # (pixel value, type), where -1 is everything above half of full scale, and of colours -2 some channel above a quarter; of outlines (their place in `drawn`, type)
    types: tuple[tuple[int, str], ...]
    checksum: str = ""  # sha256 of the mask file, or of the photo's outlines, where a reader read them
    drawn: tuple[
        str, ...
    ] = ()  # outlines of an annotation file, as packed run lengths; (): the file is a mask


@dataclass(frozen=True, slots=True)
class Sample:
    """One photo with its masks and where it comes from."""

    sample_id: str  # category/type-or-folder/stem, unique in a data set
    category: str
    types: tuple[str, ...]  # types of the targets that it shows, sorted; () for a normal
    group: str  # the source object: photos of one group never cross a split
    image: str
    masks: tuple[MaskFile, ...]
    width: int
    height: int
    mode: str  # PIL mode of the photo ("L", "RGB"); generated pairs are saved in it
    checksum: str  # sha256 of the image file
    folder_split: str = ""  # "train", "validation", "test" when the folders say so, else ""

    @property
    def is_normal(self) -> bool:
        return not self.types


@dataclass(frozen=True, slots=True)
class Target:
    """One object to segment: a connected component of one type's mask."""

    target_id: str  # sample_id#index
    sample_id: str
    category: str
    type: str
    group: str
    box: Box
    area: int  # pixels

    @property
    def longer_side(self) -> int:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cross-fitted model did on one target, or on one normal photo (type is "")."""

    target_id: str  # for a normal photo: its sample_id
    sample_id: str
    category: str
    type: str
    group: str
    fold: int
    loss: float  # mean binary cross-entropy in the target's surroundings
    soft_dice: float  # in [0, 1]; 1 minus the highest score for a normal photo
    missed: float  # share of the target's area not found at threshold 0.5
    false_area: (
        float  # false-positive pixels around the target, relative to its area (normals: to the photo's)
    )
    confidence: float  # mean score inside the target, or highest score on a normal photo
    boundary_error: float  # mean distance of predicted to true outline, in shares of the target's longer side, capped at 1
    size: float  # sqrt(area) / sqrt(photo area)
    contrast: float  # |mean inside - mean of the ring around| / 255
    peak: tuple[int, int] = (-1, -1)  # (x, y) of the highest score on a normal photo
    hard: bool = False  # whether it is missed enough for `survives` to say something (cdiff.wasm.survival)
    survives: float = 1.0  # share of the loss that is left after slight blur and JPEG


@dataclass(frozen=True, slots=True)
class Slice:
    """A stratum of targets; "" in a field means: merged over it."""

    category: str
    type: str = ""
    size: str = ""  # "small", "medium", "large"
    contrast: str = ""  # "faint", "clear"

    @property
    def name(self) -> str:
        return "/".join(part for part in (self.category, self.type, self.size, self.contrast) if part)

    def contains(self, other: Slice) -> bool:
        """Whether the other is the same or finer."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return all(part in ("", its) for part, its in zip(mine, theirs, strict=True))


@dataclass(frozen=True, slots=True)
class Weakness:
    """A ranked slice: how much the downstream model loses there."""

    slice: Slice
    targets: tuple[str, ...]  # target_ids, sorted
    loss: float
    soft_dice: float
    missed: float
    score: float  # what the ranking sorts by, higher is weaker, in [0, 1]


@dataclass(frozen=True, slots=True)
class Gain:
    """What pairs of one slice and start strength brought on validation."""

    slice: str
    start_strength: float
    pairs: int
    targets: int  # validation targets of the slice
    gain: float  # change of their mean soft Dice per 100 pairs of the slice
    error: float  # its standard error


@dataclass(frozen=True, slots=True)
class Strengths:
    """What Tune searches."""

    safe_strength: float  # classifier-free guidance on the SAFE tokens; 1 is no guidance
    start_strength: float  # tau in [0, 1]: 0 keeps the pasted real target, 1 starts from pure noise
    weakness_strength: float = 0.0  # weight of the difficulty token (arm B3)
    gradient_strength: float = 0.0  # length by which a step moves the expected image's colours, root mean square over pixels (arm B4)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a pair is computed: with equal recipe, weights and task the bytes are equal."""

    mode: Mode
    arm: Arm
    candidates: int  # K of best-of-K; 1 for B0
    fraction: float  # share of the steps before candidates are judged
    steps: int
    sampler: str
    dtype: str
    micro_batch: int
    threads: int
    guided_from: float = 0.0  # part of the path on which there is guidance: 0 is its clean end
    guided_to: float = 1.0

    @property
    def compiled(self) -> bool:
        """Whether the networks are compiled, which rounds otherwise."""
        return self.sampler.endswith("compiled")


@dataclass(frozen=True, slots=True)
class Pose:
    """How the reference target is laid onto the background: everything geometric, drawn by the planner."""

    x: float  # centre of the target in background pixels
    y: float
    angle: float  # degrees, counter-clockwise
    scale: float
    flip: bool
    elastic: float  # amplitude as a share of the target's longer side
    margin: float  # crop side / target's longer side


@dataclass(frozen=True, slots=True)
class Revisions:
    """Content hashes of the weights that a pair depends on ("" where none is used)."""

    generator: str
    bank: str
    segmenter: str = ""
    miner: str = ""  # arm B2
    token: str = ""  # arm B3


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """One request for one pair: everything that decides its pixels, and nothing else."""

    recipe: Recipe
    reference: str  # target_id of the real target whose tokens condition the pair
    background: str  # sample_id of the photo that is painted on
    pose: Pose
    strengths: Strengths
    seed: int
    revisions: Revisions
    difficulty: float = 0.5  # wanted rank in [0, 1]: what arm B3 asks for

    @property
    def task_id(self) -> str:
        return content_hash(self)

    @property
    def brought(self) -> bool:
        """Whether it is made of a photo that people brought, of objects that nobody knows."""
        return self.reference.startswith(UPLOAD) or self.background.startswith(UPLOAD)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task in its place in the plan: which slice it serves, why, and in which order it counts."""

    task: GenerationTask
    slice: str
    purpose: Purpose
    index: int  # position in the plan: acceptance goes by it, never by arrival

    @property
    def task_id(self) -> str:
        return self.task.task_id


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one assignment: where its pixels lie, what was measured. The verdict is the gate's."""

    assignment: Assignment
    shard: str  # Parquet file, relative to the run folder
    row: int
    category: str
    type: str
    box: Box  # of the new target on the finished photo
    measures: tuple[tuple[str, float], ...]  # name, value; sorted by name
    fingerprint: bytes  # 24 x 24 grey thumbnail of the crop: siblings are compared by it

    @property
    def task_id(self) -> str:
        return self.assignment.task_id

    def measure(self, name: str) -> float:
        return dict(self.measures)[name]


@dataclass(frozen=True, slots=True)
class Pair:
    """An attempt with the gate's verdict: reason "" means kept."""

    attempt: Attempt
    reason: str

    @property
    def kept(self) -> bool:
        return not self.reason

    @property
    def task_id(self) -> str:
        return self.attempt.task_id


QUARANTINED = "quarantined"  # verdict without an attempt: the task killed its actor twice
LEAST_CHANCE = 0.25  # of being better: an accepted candidate below it does not become the best model


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a round's pairs are trained on from now on, and on what evidence."""

    accepted: bool
    reason: str
    gain: float  # validation pixel AP minus that of the best model so far
    low: float | None  # ends of its 95 % interval; None where one source object shows all targets
    high: float | None
    # Of being better than the best so far and than real-only, the smaller: a share of the bootstrap.
    chance: float

    @property
    def stands(self) -> bool:
        """Whether the candidate is the best model so far from now on: it has the benefit of the doubt (docs/decisions.md)."""
        return self.accepted and self.chance >= LEAST_CHANCE


@dataclass(frozen=True, slots=True)
class Alarm:
    """A place on a normal photo where a cross-fitted model saw a target that is not there."""

    place: Target  # of no type; its id is SAMPLE@X-Y-SIDE
    score: float  # the highest on the photo


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a round knows when it plans and judges."""

    weaknesses: tuple[Weakness, ...]  # weakest first
    gains: tuple[Gain, ...] = ()  # of all rounds before
    alarms: tuple[Alarm, ...] = ()  # on normal photos, surest first
    # of the gate, from this round's outcomes: (measure, key, bound)
    bounds: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round leaves in the ledger."""

    round: int
    weaknesses: tuple[Weakness, ...]
    # per category with normals: how sure the fold models are of targets that are not there
    alarms: tuple[Weakness, ...]
    kept: int
    counts: tuple[tuple[str, str, int], ...]  # (slice, reason or "kept", how many)
    candidate: str  # revision of the segmenter fitted in this round
    validation: tuple[tuple[str, float], ...]
    decision: Decision
    seconds: tuple[tuple[str, float], ...]
    gains: tuple[Gain, ...] = ()  # by slice: what the next budget learns from
