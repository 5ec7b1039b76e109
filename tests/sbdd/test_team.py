"""Two processes that train one net: the step is that of one process, whatever is asked of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sbdzsl.metrics import average_precision
from sbdzsl.sbdd.team import ALONE, Team
from tests.sbdd import teams
from tests.sbdd.surfaces import TINY, surface, surfaces
from tests.sbdd.teams import Pair, pair_of_processes

EXACT = TINY.model_copy(update={"precision": "float32", "drawn_defects": 0.5})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_of_processes(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.mark.parametrize(
    ("changed", "images"),
    [
        ({}, surfaces(0, 8, 6)),
        ({"batch_size": 7}, surfaces(0, 6, 3, (50, 90)) + surfaces(20, 3, 2, (96, 33))),
        ({"weak_weight": 1.0, "dice_weight": 1.0}, surfaces(0, 6, 3, masked=False) + surfaces(20, 2, 3)),
        ({"feature_noise": 1.0, "batch_size": 5}, surfaces(0, 8, 2)),
        ({"batch_size": 2}, surfaces(0, 4, 2)),
        ({"network": "reference", "width": 0.1, "start": "random"}, surfaces(0, 6, 4)),
    ],
    ids=[
        "default",
        "uneven shares, mixed sizes",
        "no masks",
        "noise in features",
        "an image each",
        "published network",
    ],
)
def test_a_steps_gradients_are_those_of_one_process(pair: Pair, changed, images) -> None:
    settings = EXACT.model_copy(update=changed)
    alone = teams.one_step(ALONE, images, settings)
    first, second = pair.together(teams.one_step, images, settings)
    assert first.losses == second.losses
    assert first.losses == pytest.approx(alone.losses, rel=1e-6)
    assert set(first.gradients) == set(alone.gradients)
    largest = max(float(gradient.abs().max()) for gradient in alone.gradients.values())
    for name, expected in alone.gradients.items():
        assert torch.equal(first.gradients[name], second.gradients[name]), name
        torch.testing.assert_close(first.gradients[name], expected, rtol=1e-9, atol=1e-10 * largest, msg=name)
    for name, expected in alone.buffers.items():
        assert torch.equal(first.buffers[name], second.buffers[name]), name
        torch.testing.assert_close(first.buffers[name], expected, rtol=1e-9, atol=1e-9, msg=name)


def test_with_statistics_of_its_own_rows_each_would_go_elsewhere(pair: Pair) -> None:
    """So the test above would see it."""
    images = surfaces(0, 8, 6)
    alone = teams.one_step(ALONE, images, EXACT)
    first, _ = pair.together(teams.one_step_with_own_statistics, images, EXACT)
    gaps = [(first.gradients[name] - expected).abs().max() for name, expected in alone.gradients.items()]
    largest = max(float(gradient.abs().max()) for gradient in alone.gradients.values())
    assert max(gaps) > 1e-2 * largest


def test_both_end_with_one_net_that_has_learnt(pair: Pair) -> None:
    train, val = surfaces(0, 16, 8), surfaces(100, 12, 6)
    first, second = pair.together(teams.fit, train, val, EXACT.model_copy(update={"drawn_defects": 0.0}))
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1] == list(range(1, EXACT.epochs + 1))
    labels = np.array([image.defective for image in val])
    assert average_precision(labels, first[2]) == 1


def test_an_interrupted_team_goes_on_where_its_checkpoint_was_and_so_does_a_single_process(
    pair: Pair, tmp_path: Path
) -> None:
    train, val, url = surfaces(0, 9, 4), surfaces(100, 4, 2), str(tmp_path / "checkpoint")
    settings = EXACT.model_copy(update={"epochs": 3})
    through, _ = pair.together(teams.fit, train, val, settings)
    assert pair.together(teams.fit, train, val, settings, url, 2) == [None, None]
    kept = Path(url).read_bytes()
    resumed, other = pair.together(teams.fit, train, val, settings, url)
    assert resumed[1] == other[1] == [3]
    assert all(torch.equal(resumed[0][name], through[0][name]) for name in through[0])
    Path(url).write_bytes(kept)
    alone = teams.fit(ALONE, train, val, settings, url)
    assert alone is not None
    assert alone[1] == [3]


def test_the_time_limit_ends_both_at_one_step(pair: Pair) -> None:
    settings = EXACT.model_copy(update={"epochs": 100_000, "max_minutes": 0.04})
    first, second = pair.together(teams.fit, surfaces(0, 6, 3), surfaces(100, 3, 2), settings)
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_a_team_that_reads_other_images_is_told_so_in_each_process(pair: Pair) -> None:
    said = pair.together(teams.fit_with_an_image_less, surfaces(0, 6, 3), surfaces(100, 3, 2), EXACT)
    assert all(words.startswith("workers-failed: images or settings differ between the 2 workers") for words in said)


def test_features_are_those_of_one_process_to_the_last_bit(pair: Pair) -> None:
    images = [surface(index, index % 3 == 0) for index in range(5)]
    for ours, theirs in zip(pair.together(teams.embed, images)[1], teams.embed(ALONE, images), strict=True):
        assert np.array_equal(ours, theirs)


def test_what_is_shared_out_comes_back_in_order(pair: Pair) -> None:
    assert pair.together(teams.exchange) == [([0, 1, 4, 9, 16], 7, [0, 1, 2, 3, 4])] * 2
    assert teams.exchange(ALONE) == ([0, 1, 4, 9, 16], 7, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("size", "count"), [(1, 5), (2, 7), (3, 8), (8, 8), (4, 2)])
def test_shares_cover_each_row_once_and_differ_by_one_at_most(size: int, count: int) -> None:
    shares = [list(range(count))[Team(rank, size).rows(count)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
