from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbdzsl.sbdd.sampling import BalancedBatches, FrequencySampler


@given(st.integers(1, 60), st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_negative_is_used_about_as_often(num: int, counts: list[int], seed: int) -> None:
    sampler = FrequencySampler(num, np.random.default_rng(seed))
    drawn = [sampler.draw(count) for count in counts]
    assert [len(indices) for indices in drawn] == counts
    assert sampler.uses.sum() == sum(counts)
    assert np.array_equal(np.bincount(np.concatenate(drawn), minlength=num), sampler.uses)
    for indices, count in zip(drawn, counts, strict=True):
        # Without replacement: nothing comes twice before everything came once.
        assert np.bincount(indices, minlength=num).max() <= -(-count // num)


def test_long_run_uses_all_negatives_evenly() -> None:
    sampler = FrequencySampler(100, np.random.default_rng(1))
    for _ in range(60):
        sampler.draw(10)
    assert sampler.uses.min() >= 3
    assert sampler.uses.max() <= 9


def test_seldom_used_negatives_come_first() -> None:
    sampler = FrequencySampler(20, np.random.default_rng(0))
    sampler.uses[:10] = 5
    assert (sampler.draw(8) >= 10).all()


def test_weights_follow_the_published_rule() -> None:
    sampler = FrequencySampler(4, np.random.default_rng(0))
    assert np.array_equal(sampler.log_weights(), np.zeros(4))
    sampler.uses[:] = [0, 1, 1, 2]
    # 1 - u / max = 1, .5, .5, 0; median to 1: 1.5, 1, 1, .5; to the power 4 ln 4.
    expected = np.array([1.5, 1.0, 1.0, 0.5]) ** (4 * np.log(4))
    assert np.exp(sampler.log_weights()) == pytest.approx(expected)


def batches(positives: list[int], negatives: list[int], sizes: list[tuple[int, int]], seed: int = 0) -> BalancedBatches:
    return BalancedBatches(positives, negatives, sizes, 8, np.random.default_rng(seed))


@pytest.mark.parametrize(("num_positives", "num_negatives"), [(3, 40), (40, 3), (5, 5), (1, 1)])
def test_batches_are_half_positive_whatever_the_counts(num_positives: int, num_negatives: int) -> None:
    total = num_positives + num_negatives
    positives, negatives = list(range(num_positives)), list(range(num_positives, total))
    drawn = batches(positives, negatives, [(64, 64)] * total).draw(30)
    assert all(len(batch) == 8 and (batch < num_positives).sum() == 4 for batch in drawn)
    uses = np.bincount(np.concatenate(drawn), minlength=total)
    assert uses[:num_positives].max() - uses[:num_positives].min() <= 1


def test_without_positives_a_batch_is_all_negative() -> None:
    drawn = batches([], [0, 1, 2], [(64, 64)] * 3).draw(2)
    assert [len(batch) for batch in drawn] == [8, 8]


def test_images_of_like_size_share_a_batch() -> None:
    generator = np.random.default_rng(3)
    sizes = [(int(h), 300) for h in generator.integers(100, 640, 200)]
    heights = np.array(sizes)[:, 0]
    drawn = batches(list(range(100)), list(range(100, 200)), sizes).draw(24)
    spread = np.mean([np.ptp(heights[batch]) for batch in drawn])
    assert spread < 0.5 * np.ptp(heights)


def test_same_seed_same_batches() -> None:
    first, second, other = (batches([0, 1], list(range(2, 30)), [(8, 8)] * 30, seed).draw(9) for seed in (4, 4, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
