"""What a request comes to: pairs whose bytes depend on the request alone, where it wants them, or an error that names the offender."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cdiff.config_file import load_config
from cdiff.data.images import Limits, decode_mask_png, decode_png, encode_png
from cdiff.data.journal import Event, Lines
from cdiff.data.ledger import Ledger
from cdiff.downstream.segmenter import build_segmenter, save_segmenter
from cdiff.errors import RequestError
from cdiff.service import studio as studio_module
from cdiff.service.requests import MaskRequest, PairRequest, SegmentRequest
from cdiff.service.studio import Studio
from cdiff.service.uploads import check_pictures
from cdiff.types import UPLOAD
from cdiff.wasm import production


def _pixels(studio, row):
    limits = Limits.of(studio.config.data)
    return decode_png(row.image_png, limits).astype(int), decode_mask_png(row.mask_png, limits)


def test_types_of_the_run_are_told_with_their_targets(studio) -> None:
    assert studio.types == {("metal", "bar"): 3, ("metal", "pit"): 3}


def test_a_request_has_the_same_bytes_alone_and_among_others(studio, sent) -> None:
    plain = {"safe_strength": 1.0}  # without guidance: another way through the sampler
    wanted = PairRequest.model_validate({"type": "pit", "n": 2, "seed": 7, "strengths": plain})
    others = [
        PairRequest.model_validate({"type": "bar", "background": sent["photo"], "n": 3}),
        PairRequest.model_validate({"type": "bar", "background": sent["photo"], "mask": sent["mask"]}),
        PairRequest.model_validate(
            {"reference": {"image": sent["photo"], "mask": sent["mask"]}, "category": "metal"}
        ),
        PairRequest.model_validate({"type": "pit", "mode": "joint"}),
    ]
    alone = studio.make(studio.tickets(wanted))
    tickets = [t for request in others[:2] for t in studio.tickets(request)] + studio.tickets(wanted)
    among = studio.make(tickets + [t for request in others[2:] for t in studio.tickets(request)])[4:6]
    assert [(r.image_png, r.mask_png) for r in alone] == [(r.image_png, r.mask_png) for r in among]
    assert alone[0].image_png != alone[1].image_png, "each pair has a seed of its own"
    assert [row.attempt.task_id for row in alone] == [row.attempt.task_id for row in among]


def test_large_photos_are_laid_out_few_at_a_time_and_decoded_once(studio, sent, monkeypatch) -> None:
    wanted = PairRequest.model_validate(
        {"type": "pit", "background": sent["photo"], "mask": sent["mask"], "n": 5}
    )
    tickets = studio.tickets(wanted)
    assert len({id(upload.image) for ticket in tickets for upload in ticket.uploads}) == 1
    for ticket in tickets:  # verdicts name pairs by it: it is what it always was
        parts = (
            base64.b64decode(sent["photo"]),
            base64.b64decode(sent["mask"]),
            b"metal",
            b"pit",
            ticket.tokens_of.encode(),
        )
        told = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
        assert ticket.task.background == f"{UPLOAD}{told}" == ticket.uploads[-1].sample_id
    batches: list[int] = []
    real = studio_module.produce

    def counted(tasks, *rest):
        batches.append(len(tasks))
        return real(tasks, *rest)

    monkeypatch.setattr(studio_module, "produce", counted)
    together = studio.make(tickets)
    monkeypatch.setattr(production, "AT_ONCE", 2 * max(map(studio._laid_pixels, tickets)))
    apart = studio.make(tickets)
    assert batches == [5, 2, 2, 1]
    assert [(r.image_png, r.mask_png) for r in apart] == [(r.image_png, r.mask_png) for r in together]


def test_a_mask_that_the_user_draws_is_the_pairs_mask(studio, sent) -> None:
    request = PairRequest.model_validate(
        {"type": "pit", "background": sent["photo"], "mask": sent["mask"], "seed": 1}
    )
    (row,) = studio.make(studio.tickets(request))
    image, mask = _pixels(studio, row)
    drawn = decode_mask_png(base64.b64decode(sent["mask"]), Limits.of(studio.config.data))
    photo = decode_png(base64.b64decode(sent["photo"]), Limits.of(studio.config.data)).astype(int)
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.8
    assert (image != photo).any()
    far = np.ones(mask.shape, bool)
    far[15:70, 25:75] = False
    assert np.array_equal(image[far], photo[far])


def test_the_same_mask_with_another_types_tokens_is_another_pair(studio, sent) -> None:
    common = {
        "background": sent["photo"],
        "mask": sent["mask"],
        "strengths": {"safe_strength": 8, "start_strength": 1},
    }
    rows = studio.make(
        [
            t
            for kind in ("pit", "bar")
            for t in studio.tickets(PairRequest.model_validate({**common, "type": kind}))
        ]
    )
    assert [row.attempt.type for row in rows] == ["pit", "bar"]
    assert rows[0].image_png != rows[1].image_png


def test_a_region_says_where_the_target_goes(studio, sent) -> None:
    region = {"left": 50, "top": 10, "right": 74, "bottom": 34}
    request = PairRequest.model_validate(
        {"type": "pit", "background": sent["photo"], "region": region, "mode": "given_mask", "seed": 3}
    )
    (row,) = studio.make(studio.tickets(request))
    rows, columns = np.nonzero(_pixels(studio, row)[1])
    assert abs(columns.mean() - 62) < 12 and abs(rows.mean() - 22) < 12
    assert 12 <= np.ptp(columns) <= 34


def test_an_own_reference_needs_no_type_of_the_run(studio, sent) -> None:
    own = {"image": sent["photo"], "mask": sent["mask"]}
    request = PairRequest.model_validate(
        {"reference": own, "background": sent["photo"], "strengths": {"start_strength": 0.2}}
    )
    (row,) = studio.make(studio.tickets(request))
    assert (row.attempt.category, row.attempt.type) == ("metal", "own"), "the run has one category"
    (on_a_photo_of_the_run,) = studio.tickets(PairRequest.model_validate({"reference": own}))
    assert on_a_photo_of_the_run.task.background in studio.manifest.ids("train")
    with pytest.raises(RequestError, match="give a background"):
        studio.tickets(PairRequest.model_validate({"reference": own, "category": "wood"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "rust"}, "there is no type 'rust'.*metal/bar, metal/pit"),
        ({"type": "pit", "category": "wood"}, "there is no type 'pit' of 'wood'"),
        (
            {"type": "pit", "background": "photo", "mask": "other"},
            "mask: 90 x 60 pixels, but the image has 90 x 70",
        ),
        ({"type": "pit", "background": "photo", "mask": "empty"}, "nothing in it is white"),
        (
            {"type": "pit", "background": "photo", "region": {"left": 0, "top": 0, "right": 91, "bottom": 9}},
            "beyond the photo",
        ),
    ],
)
def test_what_cannot_be_used_is_named(fields, message, studio, sent) -> None:
    fields = {
        key: sent.get(value, value) if isinstance(value, str) else value for key, value in fields.items()
    }
    with pytest.raises(RequestError, match=message):
        studio.tickets(PairRequest.model_validate(fields))


def test_a_target_is_not_blown_up_beyond_reason(studio, sent) -> None:
    """Scaled a thousand times, a speck would take all memory."""
    speck = np.zeros((70, 90), np.uint8)
    speck[30:33, 40:43] = 255
    buffer = io.BytesIO()
    Image.fromarray(speck).save(buffer, format="PNG")
    own = {"image": sent["photo"], "mask": base64.b64encode(buffer.getvalue()).decode()}
    region = {"left": 0, "top": 0, "right": 80, "bottom": 60}
    with pytest.raises(RequestError, match=r"3 pixels would be scaled by 26\.7"):
        studio.tickets(
            PairRequest.model_validate({"reference": own, "background": sent["photo"], "region": region})
        )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "../etc"},
        {"type": "pit", "n": 17},
        {"type": "pit", "region": {"left": 0, "top": 0, "right": 9, "bottom": 9}},
        {"type": "pit", "strengths": {"start_strenght": 0.5}},
        {"type": "pit", "seed": -1},
        {"type": "pit", "background": "no base64!"},
        {"type": "pit", "background": ""},
        {"type": "pit", "background": "AAAA", "mask": ""},
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_decoded(fields) -> None:
    with pytest.raises(ValidationError):
        PairRequest.model_validate(fields)


def test_a_mask_is_read_from_a_photo_inside_its_region(studio, sent) -> None:
    region = {"left": 30, "top": 20, "right": 70, "bottom": 60}
    request = MaskRequest.model_validate({"image": sent["photo"], "region": region, "type": "pit"})
    mask = studio.read_mask(request)
    assert mask.shape == (70, 90) and not mask[:20].any() and not mask[:, 70:].any()
    assert np.array_equal(mask, studio.read_mask(request))


def test_the_gate_says_what_it_has_against_a_pair(studio) -> None:
    (row,) = studio.make(studio.tickets(PairRequest.model_validate({"type": "pit"})))
    sound = dict(row.attempt.measures) | {"outside": 0, "area": 90, "changed": 1, "reference_distance": 1}
    for more, said in (
        ({"visible": 0.011}, ""),  # the run's gate wants a hundredth
        ({"visible": 0.009}, "not visible"),
        ({"outside": 1}, "changed outside"),
        ({"visible": 1, "reference_distance": 0}, "near-duplicate"),
    ):
        measures = tuple(sorted((sound | more).items()))
        attempt = dataclasses.replace(row.attempt, measures=measures)
        assert studio.reason(dataclasses.replace(row, attempt=attempt)) == said


def test_without_a_background_training_photos_alone_are_painted_on(studio, monkeypatch) -> None:
    sides: Any = ("train", "validation", "test")
    rows = [dataclasses.replace(row, split=sides[n % 3]) for n, row in enumerate(studio.manifest.rows)]
    monkeypatch.setattr(studio, "manifest", dataclasses.replace(studio.manifest, rows=tuple(rows)))
    tickets = studio.tickets(PairRequest.model_validate({"type": "pit", "n": 16}))
    painted_on = {ticket.task.background for ticket in tickets}
    assert len(painted_on) > 1 and painted_on <= set(studio.manifest.ids("train"))


def test_the_segmenter_that_stands_is_the_one_that_answers(judged_run, photos, sent) -> None:
    run = judged_run
    studio, config = Studio(run, photos), load_config(run.path / "config.yaml").downstream
    assert not studio.has_segmenter
    first, second = (
        save_segmenter(build_segmenter(config, seed), run.checkpoints, config) for seed in (0, 1)
    )
    ledger = Ledger(run)
    request = SegmentRequest.model_validate({"image": sent["photo"]})
    ledger.record("real_only", assessed={"revision": first, "threshold": 0.3})
    ledger.record("round-1", assessed={"revision": first, "threshold": 0.3})
    before, threshold, _ = studio.segment(request)
    assert studio.has_segmenter and before.shape == (70, 90) and threshold == 0.3
    ledger.record("round-1", assessed={"revision": second, "threshold": 0.4})
    shutil.rmtree(run.checkpoint(first))  # as resources.keep=needed may
    after, threshold, _ = studio.segment(request)
    assert threshold == 0.4 and not np.array_equal(before, after)
    ledger.close()


def test_a_photo_is_segmented_without_reading_the_ledger_from_its_start(
    judged_run, photos, sent, monkeypatch
) -> None:
    """On S3 each event is a request, and the thread that would ask makes the pairs."""
    read: list[int] = []
    load = Lines.load

    def counted(journal: Lines, known: int = 0) -> list[Event]:
        read.append(known)
        return load(journal, known)

    monkeypatch.setattr(Lines, "load", counted)
    studio, config = Studio(judged_run, photos), load_config(judged_run.path / "config.yaml").downstream
    assert read == [0], "once for all that stands"
    revision = save_segmenter(build_segmenter(config, 0), judged_run.checkpoints, config)
    with contextlib.closing(Ledger(judged_run)) as ledger:
        ledger.record("real_only", assessed={"revision": revision, "threshold": 0.3})
        ledger.record("round-1", assessed={"revision": revision, "threshold": 0.3})
        events = len(ledger.events())
    request = SegmentRequest.model_validate({"image": sent["photo"]})
    assert studio.has_segmenter, "of a loop that went on meanwhile"
    studio.segment(request)
    read.clear()
    for _ in range(2):
        assert studio.has_segmenter
        studio.segment(request)
    assert read == [events, events], "what is new, once a request"


def test_a_narrow_photo_of_few_pixels_cannot_ask_for_a_crop_of_gigabytes(studio) -> None:
    """Crops are squares of the target's longer side, and poses are looked for in a share of the photo's."""
    strip, mask = np.full((16, 25_000, 3), 120, np.uint8), np.zeros((16, 25_000), np.uint8)
    mask[4:12, 100:24_900] = 255
    photo, shape = (
        base64.b64encode(encode_png(values, mode)) for values, mode in ((strip, "RGB"), (mask, "L"))
    )
    region = {"left": 0, "top": 0, "right": 25_000, "bottom": 16}
    told = r"25000 x 16 pixels; 8000 is the longest side"
    with pytest.raises(RequestError, match=told):
        studio.read_mask(MaskRequest.model_validate({"image": photo, "region": region, "type": "pit"}))
    with pytest.raises(RequestError, match=told):
        check_pictures(SegmentRequest.model_validate({"image": photo}), studio._limits)
    drawn = {"type": "pit", "background": photo, "mask": shape}
    near = {"type": "pit", "background": photo, "region": {"left": 100, "top": 2, "right": 112, "bottom": 14}}
    for asked in (drawn, near, {"reference": {"image": photo, "mask": shape}}):
        with pytest.raises(RequestError, match=told):
            studio.tickets(PairRequest.model_validate(asked))
        with pytest.raises(RequestError, match=told):
            check_pictures(PairRequest.model_validate(asked), studio._limits)
