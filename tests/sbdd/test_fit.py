from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sbdzsl.errors import DataError, SbdzslError, TrainingError
from sbdzsl.metrics import average_precision
from sbdzsl.sbdd.batch import Prepared, dilate
from sbdzsl.sbdd.fit import (
    FittedDetector,
    Progress,
    choose_map_threshold,
    choose_scale,
    fit_detector,
)
from sbdzsl.sbdd.loss import CellTargets
from sbdzsl.sbdd.predict import DefectMap
from sbdzsl.sbdd.trainer import Trainer, one_cycle
from tests.sbdd.surfaces import TINY, surface, surfaces

QUICK = TINY.model_copy(update={"epochs": 1, "drawn_defects": 0.5})


@pytest.fixture(scope="module")
def fitted() -> FittedDetector:
    return fit_detector(surfaces(0, 16, 8), surfaces(100, 12, 6), TINY, seed=0)


def test_bright_blob_is_learned(fitted: FittedDetector) -> None:
    assert average_precision(fitted.val_labels, fitted.val_scores) == 1
    assert fitted.history[-1].val_ap == 1
    test = surfaces(200, 15, 15)
    scores = np.array([fitted.detector.detect(image.grey).score for image in test])
    assert average_precision(np.array([image.defective for image in test]), scores) == 1


def test_regions_lie_on_the_defects_and_good_overlays_are_empty(fitted: FittedDetector) -> None:
    for image in surfaces(200, 15, 15):
        regions = fitted.detector.detect(image.grey).regions(fitted.detector.map_threshold)
        if image.mask is None:
            assert regions == ()
        else:
            assert any(image.mask[r.y : r.y + r.height, r.x : r.x + r.width].any() for r in regions)


def test_history_tells_each_epoch(fitted: FittedDetector) -> None:
    assert [record.epoch for record in fitted.history] == list(range(1, TINY.epochs + 1))
    assert fitted.history[-1].segmentation_loss < fitted.history[0].segmentation_loss
    assert all(a.seconds < b.seconds for a, b in zip(fitted.history, fitted.history[1:], strict=False))


def test_scores_are_those_the_detector_gives_for_the_source_images(fitted: FittedDetector) -> None:
    scores = [fitted.detector.detect(image.grey).score for image in surfaces(100, 12, 6)]
    assert fitted.val_scores.tolist() == scores


def test_same_seed_same_weights_other_seed_others() -> None:
    images, val = surfaces(0, 6, 3), surfaces(100, 3, 2)
    first, second, other = (fit_detector(images, val, QUICK, seed).detector.tensors() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_seed_of_the_process_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_detector(surfaces(0, 4, 2), surfaces(100, 2, 0), QUICK, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (surfaces(0, 5, 3), surfaces(100, 3, 0)),
        (surfaces(0, 6, 0), surfaces(100, 3, 0)),
        (surfaces(0, 5, 3, masked=False), surfaces(100, 2, 2, masked=False)),
        (surfaces(0, 2, 9), surfaces(100, 1, 2)),
        (surfaces(0, 3, 2, (50, 90)) + surfaces(10, 3, 2, (120, 33)), surfaces(100, 2, 1, (77, 64))),
    ],
    ids=["no defect in val", "no defect at all", "no masks", "more defects than good", "mixed sizes"],
)
def test_every_level_of_labels_trains(train, val) -> None:
    fitted = fit_detector(train, val, QUICK, seed=0)
    assert np.isfinite(fitted.val_scores).all()
    assert fitted.val_labels.tolist() == [image.defective for image in val]
    assert (fitted.history[-1].val_ap is None) == (not fitted.val_labels.any())


def test_drawn_defects_alone_find_the_blob() -> None:
    settings = TINY.model_copy(update={"epochs": 12})
    fitted = fit_detector(surfaces(0, 24, 0), surfaces(100, 12, 12), settings, seed=0)
    ap = average_precision(fitted.val_labels, fitted.val_scores)
    assert ap is not None
    assert ap > 0.9


def test_time_limit_ends_the_training_in_good_order() -> None:
    settings = TINY.model_copy(update={"epochs": 100_000, "max_minutes": 0.05})
    seen: list[Progress] = []
    started = time.monotonic()
    fitted = fit_detector(surfaces(0, 6, 3), surfaces(100, 3, 2), settings, 0, seen.append)
    assert time.monotonic() - started < 15
    assert seen == list(fitted.history)
    assert seen[-1].epoch <= seen[-1].epochs < 1000
    assert np.isfinite(fitted.val_scores).all()


def test_images_that_cannot_be_trained_on_are_refused() -> None:
    good, bad = surface(0, False), surface(1, True)
    no_drawing = QUICK.model_copy(update={"drawn_defects": 0.0})
    marked = replace(good, mask=np.ones((64, 64), np.bool_))
    resized = replace(bad, mask=np.ones((32, 64), np.bool_))
    for train, val, settings, code, words in (
        ([good, bad], [good], QUICK, "too-few-images", "1 good training"),
        ([good, good, bad], [bad], QUICK, "too-few-images", "no good image among 1"),
        ([good, good], [good], no_drawing, "too-few-images", "drawn_defects 0"),
        ([good, good, marked], [good], QUICK, "bad-mask", "surface-0"),
        ([good, good, resized], [good], QUICK, "bad-mask", r"\[32, 64\]"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            fit_detector(train, val, settings, seed=0)
        assert caught.value.code == code


def test_loss_that_is_not_finite_names_the_images() -> None:
    settings = QUICK.model_copy(update={"learning_rate": 1e30, "epochs": 4})
    with pytest.raises(TrainingError, match="surface-") as caught:
        fit_detector(surfaces(0, 4, 2), surfaces(100, 2, 0), settings, seed=0)
    assert caught.value.code == "not-finite"


def test_pixels_that_are_not_finite_name_the_image() -> None:
    broken = surface(7, False)
    broken.grey[3, 3] = np.nan
    with pytest.raises(SbdzslError, match="surface-7"):
        fit_detector([*surfaces(0, 4, 2), broken], surfaces(100, 2, 0), QUICK, seed=0)


def test_empty_mask_of_a_defective_image_counts_as_none() -> None:
    blank = replace(surface(1, True), mask=np.zeros((64, 64), np.bool_))
    unmasked = replace(blank, mask=None)
    weights = [
        fit_detector([*surfaces(10, 4, 1), image], surfaces(100, 2, 0), QUICK, seed=0).detector.tensors()
        for image in (blank, unmasked)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("shape", "scale"), [((256, 256), 1.0), ((512, 512), 0.5), ((1250, 500), 0.5), ((3000, 4000), 0.25)]
)
def test_scale_follows_the_size_of_the_images(shape: tuple[int, int], scale: float) -> None:
    assert choose_scale([shape, shape, (16, 16)]) == scale


def peaks(*values: float) -> list[DefectMap]:
    return [DefectMap(0.0, np.array([[-9.0, value]], np.float32), 8, 16, 8, 16) for value in values]


def test_map_threshold_lies_between_good_and_defective_maps() -> None:
    good = peaks(*np.linspace(-4, -2, 20), 7.0)
    assert choose_map_threshold(good, peaks(1.0, 6.0, 9.0)) == pytest.approx(-2 + 0.25 * 8)
    assert choose_map_threshold(good, []) == 0
    assert choose_map_threshold(peaks(1.5), []) == 1.5
    assert choose_map_threshold(peaks(1.5), peaks(-3.0)) == 1.5


def test_dilation_widens_by_its_size_and_stays_binary() -> None:
    mask = np.zeros((21, 21), np.bool_)
    mask[10, 10] = True
    wide = dilate(mask, 7)
    assert wide.dtype == np.bool_
    assert wide[10].sum() == wide[:, 10].sum() == 7
    assert dilate(mask, 1) is mask


def test_one_cycle_rises_then_falls_to_nothing() -> None:
    rates = np.array([one_cycle(p) for p in np.linspace(0, 1, 101)])
    assert rates.argmax() == 25
    assert rates[25] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


class KilledError(Exception):
    """Stands for a kill."""


def stop_after(epoch: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.epoch == epoch:
            raise KilledError

    return stop


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_run_through(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sbdzsl.sbdd.trainer.CHECKPOINT_EVERY_S", 0.0)
    images, val, url = surfaces(0, 9, 4), surfaces(100, 4, 2), str(tmp_path / "checkpoint")
    settings = TINY.model_copy(update={"epochs": 4, "keep": "best"})
    through = fit_detector(images, val, settings, seed=3)
    with pytest.raises(KilledError):
        fit_detector(images, val, settings, 3, stop_after(2), checkpoint_url=url)
    seen: list[Progress] = []
    resumed = fit_detector(images, val, settings, 3, seen.append, checkpoint_url=url)
    assert [record.epoch for record in seen] == [3, 4]
    assert [record.epoch for record in resumed.history] == [1, 2, 3, 4]
    ours, theirs = resumed.detector.tensors(), through.detector.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    seen.clear()
    again = fit_detector(images, val, settings, 3, seen.append, checkpoint_url=url).detector.tensors()
    assert seen == [], "a finished training has nothing left to do"
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_another_training_is_not_resumed_from(tmp_path: Path) -> None:
    images, val, url = surfaces(0, 6, 3), surfaces(100, 3, 2), str(tmp_path / "checkpoint")
    fit_detector(images, val, QUICK, 0, checkpoint_url=url)
    for train, settings, seed in (
        (images[1:], QUICK, 0),
        (images, QUICK.model_copy(update={"learning_rate": 1e-3}), 0),
        (images, QUICK, 1),
    ):
        seen: list[Progress] = []
        fit_detector(train, val, settings, seed, seen.append, checkpoint_url=url)
        assert [record.epoch for record in seen] == [1]
    Path(url).write_bytes(Path(url).read_bytes()[:-50])
    said: list[str] = []
    fit_detector(images, val, QUICK, 1, seen.append, checkpoint_url=url, report=said.append)
    assert len(seen) == 2, "a damaged checkpoint begins anew"
    assert len(said) == 1
    assert "damaged" in said[0]
    fit_detector(images, val, QUICK, 0, checkpoint_url=url, report=said.append)
    assert "other images or settings" in said[1]


def test_a_training_that_its_time_limit_ended_is_finished(tmp_path: Path) -> None:
    images, val, url = surfaces(0, 6, 3), surfaces(100, 3, 2), str(tmp_path / "checkpoint")
    settings = TINY.model_copy(update={"epochs": 100_000, "max_minutes": 0.03})
    first = fit_detector(images, val, settings, 0, checkpoint_url=url)
    again = fit_detector(images, val, settings, 0, checkpoint_url=url)
    assert again.history == first.history
    ours, theirs = again.detector.tensors(), first.detector.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    more = fit_detector(images, val, settings.model_copy(update={"max_minutes": 0.05}), 0, checkpoint_url=url)
    assert len(more.history) > len(first.history), "a raised limit lets it go on"


def test_training_stops_when_validation_gains_nothing_more() -> None:
    settings = TINY.model_copy(update={"epochs": 40, "patience": 2})
    history = fit_detector(surfaces(0, 16, 8), surfaces(100, 12, 6), settings, seed=0).history
    measured = [record.val_ap for record in history if record.val_ap is not None]
    assert len(history) < 40
    assert max(measured[-2:]) <= max(measured[:-2])


def test_the_best_weights_are_those_of_the_best_validation() -> None:
    settings = TINY.model_copy(update={"epochs": 16, "learning_rate": 0.03, "keep": "best", "drawn_defects": 0.9})
    fitted = fit_detector(surfaces(0, 12, 4), surfaces(100, 30, 15), settings, seed=1)
    kept = average_precision(fitted.val_labels, fitted.val_scores)
    assert kept == max(record.val_ap for record in fitted.history if record.val_ap is not None)


@pytest.mark.parametrize(
    "changed",
    [
        {"optimiser": "sgd", "learning_rate": 0.05},
        {"sampling": "random"},
        {"loss_balance": "published"},
        {"decision_gradient": 0.0},
        {"distance_power": 0.0},
        {"dilation_px": 15},
        {"dice_weight": 0.0},
        {"defect_share_cap": 0.005},
        {"augmentation": False},
        {"feature_noise": 0.5},
        {"start": "random", "width": 1.0},
    ],
    ids=str,
)
def test_each_part_of_the_recipe_is_an_option_that_trains_other_weights(changed) -> None:
    images, val = surfaces(0, 6, 3), surfaces(100, 3, 2)
    base = QUICK.model_copy(update={key: 1.0 for key in changed if key == "width"})
    ours, theirs = (
        fit_detector(images, val, settings, seed=0).detector.tensors()
        for settings in (base, base.model_copy(update=changed))
    )
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weak_labels_move_the_map_of_images_without_a_mask() -> None:
    images, val = surfaces(0, 8, 8, masked=False), surfaces(100, 3, 2)
    ours, theirs = (
        fit_detector(images, val, QUICK.model_copy(update={"weak_weight": weight}), seed=0).detector.tensors()
        for weight in (0.0, 1.0)
    )
    assert not torch.equal(ours["network.map.weight"], theirs["network.map.weight"])


def test_the_decision_guides_the_trunk_alone_where_nothing_else_does() -> None:
    def gradient(images, **changed) -> float:
        prepared = [Prepared(i.image_id, i.grey, i.defective, i.mask) for i in images]
        return Trainer(prepared, QUICK.model_copy(update=changed), 0, "cpu").decision_gradient

    assert gradient(surfaces(0, 3, 2)) == 0.1
    assert gradient(surfaces(0, 3, 2, masked=False)) == 0.1
    assert gradient(surfaces(0, 3, 2, masked=False), drawn_defects=0.0) == 1.0
    assert gradient(surfaces(0, 3, 2), decision_gradient=0.0) == 0.0


def test_noise_in_features_alone_makes_a_good_image_defective_where_it_is() -> None:
    settings = QUICK.model_copy(update={"feature_noise": 1.0})
    trainer = Trainer(
        [Prepared(i.image_id, i.grey, i.defective, i.mask) for i in surfaces(0, 3, 1)], settings, 0, "cpu"
    )
    encoded, defective = torch.randn(8, 5, 16, 16), torch.tensor([1.0] + 7 * [0.0])
    blank = CellTargets(torch.zeros(8, 1, 15, 16), torch.ones(8, 1, 15, 16))
    noisy, targets, labels = trainer._with_noise(encoded, blank, defective)
    changed = (noisy != encoded).any(dim=1, keepdim=True)[..., :15, :]
    assert torch.equal(changed.float(), targets.defect)
    assert 0 < labels[1:].sum() < 7
    assert targets.defect[0].sum() == 0
    assert (targets.weight[targets.defect > 0] == settings.positive_weight).all()
