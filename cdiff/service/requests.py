"""What the service is asked for, and within which bounds. Pydantic models: OpenAPI is made from them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

MOST = 16  # pairs of one request
_NAME = r"^[^/\\\x00-\x1f]{1,100}$"  # categories and types: never a path
Name = Annotated[str, Field(pattern=_NAME)]


def _decoded(value: Any) -> bytes:
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("no base64 of a PNG or JPEG file") from None
    if not data:  # it would be taken for a picture that was left out
        raise ValueError("empty: no PNG or JPEG file")
    return data


_SCHEMA = {"type": "string", "contentEncoding": "base64", "description": "A PNG or JPEG file, base64."}
Picture = Annotated[
    bytes,
    PlainValidator(_decoded),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), when_used="json"),
    WithJsonSchema(_SCHEMA),
]


class Strict(BaseModel):
    """Unknown fields are refused: a misspelt strength is not lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(Strict):
    """A rectangle of a photo, in its pixels; right and bottom are outside."""

    left: int = Field(ge=0)
    top: int = Field(ge=0)
    right: int = Field(gt=0)
    bottom: int = Field(gt=0)

    @model_validator(mode="after")
    def _has_room(self) -> Box:
        if self.right - self.left < 4 or self.bottom - self.top < 4:
            raise ValueError("a region is at least 4 by 4 pixels: left < right, top < bottom")
        return self

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right, self.bottom


class Reference(Strict):
    """A real target of the user's own: what is wanted more of."""

    image: Picture
    mask: Picture = Field(description="Of the image's size; white where the target is.")


class Strengths(Strict):
    """How strongly what steers the generator; those that are left out are the run's."""

    safe_strength: float | None = Field(
        None, ge=0, le=20, description="Guidance on the SAFE tokens; 1 is none."
    )
    start_strength: float | None = Field(
        None, ge=0, le=1, description="Noise on the pasted real target: 0 copy-paste, 1 pure noise."
    )


class PairRequest(Strict):
    """Pairs of photo and mask.

    What is to be seen: a `type` of the run, or a `reference` of your own. Where: on a `background` of your own, in a `region` of it or in the very
    shape of a `mask`; without them on a normal photo of the run, where real targets of the type lie.
    """

    category: Name | None = Field(
        None, description="As GET /v1/types tells; may be left out where there is one."
    )
    type: Name | None = None
    reference: Reference | None = None
    background: Picture | None = None
    region: Box | None = None
    mask: Picture | None = Field(
        None, description="Of the background's size; white where the new target is to be."
    )
    mode: Literal["joint", "mask_first", "given_mask"] | None = Field(
        None,
        description="What is drawn in which order; left out: the run's, and given_mask where there is a mask.",
    )
    n: int = Field(1, ge=1, le=MOST, description="Pairs, each from a seed of its own.")
    seed: int = Field(0, ge=0, lt=2**31)
    strengths: Strengths = Strengths()
    model: Name | None = Field(None, description="As GET /v1/models tells; left out: the first.")

    @model_validator(mode="after")
    def _hangs_together(self) -> PairRequest:
        if (self.type is None) == (self.reference is None):
            raise ValueError("give either a type of the run or a reference of your own")
        if self.background is None and (self.region or self.mask):
            raise ValueError("a region or a mask lies on a background: give one")
        if self.region and self.mask:
            raise ValueError("give a region or a mask, not both")
        if self.mask and self.mode == "joint":
            raise ValueError("mode joint draws a mask of its own: leave mask or mode out")
        return self


class MaskRequest(Strict):
    """Read a target's mask from a photo: what the label check does."""

    image: Picture
    region: Box = Field(description="Around the target.")
    category: Name | None = None
    type: Name
    seed: int = Field(0, ge=0, lt=2**31)
    model: Name | None = None


class SegmentRequest(Strict):
    """Segment a photo with the run's best segmenter."""

    image: Picture
    threshold: float | None = Field(
        None, gt=0, lt=1, description="Left out: the one that was best on validation."
    )
    model: Name | None = None


class PairAnswer(BaseModel):
    """One pair and everything that decides it."""

    task_id: str
    category: str
    type: str
    seed: int
    image: str = Field(description="PNG, base64.")
    mask: str = Field(description="PNG, base64; 255 where a target is.")
    box: tuple[int, int, int, int] = Field(description="Of the new target: left, top, right, bottom.")
    valid: bool
    reason: str = Field(description="Of the quality gate; empty where the pair is valid.")
    reference: str
    background: str
    strengths: dict[str, float]
    pose: dict[str, float]
    recipe: dict[str, str | int | float]
    revisions: dict[str, str]
    measures: dict[str, float]


class PairsAnswer(BaseModel):
    """The pairs of a request, in the order of their seeds."""

    model: str
    pairs: list[PairAnswer]


class MaskAnswer(BaseModel):
    """A mask that was read from a photo."""

    model: str
    mask: str = Field(description="PNG of the photo's size, base64; 255 where the target is.")


class SegmentAnswer(BaseModel):
    """Where the segmenter sees targets."""

    model: str
    mask: str = Field(description="PNG, base64; 255 from the threshold on.")
    scores: str = Field(description="PNG, base64; score times 255.")
    threshold: float
    image_score: float


class VerdictRequest(Strict):
    """A person's word on a pair: the next round trains without the run's that are rejected, and with the service's that are accepted."""

    task_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    accepted: bool
    made: PairRequest | None = Field(
        None,
        description="The request that made the pair, where no round did. Accepted, it is made again, stored, and trained on.",
    )
    reviewer: str = Field(pattern=r"^[^\x00-\x1f]{1,100}$")
    model: Name | None = None


class KeptPair(BaseModel):
    """A pair that a round of the run kept, or that people made and accepted."""

    task_id: str
    round: int = Field(
        description="That kept it; or, of one that people made, is the first to train on it, at the earliest."
    )
    human: bool = Field(description="People made it.")
    category: str
    type: str
    verdict: Literal["accepted", "rejected"] | None = Field(description="The last that people said of it.")


class KeptPairs(BaseModel):
    """Some of the kept pairs: those that people made, then the latest round first."""

    model: str
    total: int
    pairs: list[KeptPair]


class TypeAnswer(BaseModel):
    """A type of target that the run knows."""

    category: str
    type: str
    targets: int = Field(description="Training targets.")


class ModelAnswer(BaseModel):
    """A run whose generator is served."""

    model: str
    revisions: dict[str, str]
    resolution: int
    mode: str
    strengths: dict[str, float]
