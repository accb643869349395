"""SAFE and plain pooling on the same targets in two scenes."""

import numpy as np
import pytest

from cdiff.evaluation.scenes import describe_scenes


def test_both_descriptions_are_of_the_same_targets_in_two_scenes(photos, tiny_generator):
    ids = [sample.sample_id for sample in photos.samples]
    targets = photos.all_targets(ids)
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    scenes = describe_scenes(tiny_generator, photos, targets, normals, np.random.default_rng(0))
    assert len(scenes.kinds) == len(targets) and set(scenes.kinds) == {"metal/pit", "metal/bar"}
    for here, elsewhere in (scenes.safe, scenes.plain):
        assert here.shape == elsewhere.shape == (len(targets), here.shape[1])
        assert not np.allclose(here, elsewhere)  # the scene leaks in through what lies around the mask
    told: dict = scenes.summary()
    # dark squares and bright bars: even plain pooling tells them apart
    assert told["plain"]["likeness"] > 0.2
    assert told["plain"]["retrieval_at_1"] == 1
    assert 0 <= told["safe"]["retrieval_at_1"] <= 1
    assert scenes.groups == [target.group for target in targets]


def test_too_few_targets_or_backgrounds_are_named(photos, tiny_generator):
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="two targets"):
        describe_scenes(tiny_generator, photos, targets[:1], [], rng)
    with pytest.raises(ValueError, match="own photo"):
        describe_scenes(tiny_generator, photos, targets[:2], [targets[0].sample_id], rng)
