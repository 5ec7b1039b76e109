"""What settings are worth: pseudo-unseen folds, thresholds from other images than are judged, nothing of the unseen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sbdzsl.config import DetectorSettings, RouterSettings, TrainSettings
from sbdzsl.errors import DataError
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.fit import EmbeddedImages
from sbdzsl.training import TrainingPlan, plan_training
from sbdzsl.tuning import DetectorBench, RouterBench, outcomes, pseudo_unseen
from sbdzsl.tuning.prepare import (
    EmbeddedSurface,
    FeatureFile,
    LabelledSurface,
    check_surface,
    embed_surface,
    with_what_is_needed,
)
from tests.conftest import SEEN, SMALL, UNSEEN, Trained
from tests.tuning.benches import draw_bench, draw_surfaces

GATE = TrainSettings(router=RouterSettings(pca_dims=16))


@pytest.mark.parametrize(("number", "folds"), [(3, 2), (3, 9), (4, 2), (7, 3), (20, 4)])
def test_each_surface_is_held_out_once_while_two_others_stay(number: int, folds: int) -> None:
    names = [f"surface {place}" for place in range(number)]
    parts = pseudo_unseen(names, folds, seed=3)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(1 <= len(part) <= number - 2 for part in parts)
    assert parts == pseudo_unseen(names[::-1], folds, seed=3), "the order of the surfaces plays no part"
    assert number < 7 or parts != pseudo_unseen(names, folds, seed=4)


def test_two_surfaces_are_too_few() -> None:
    with pytest.raises(DataError, match="found 2 seen surfaces, expected at least 3"):
        pseudo_unseen(["a", "b"], 2, 0)


def test_surfaces_that_lie_apart_are_told_apart_and_those_that_do_not_are_not() -> None:
    far, near = (list(outcomes(draw_bench(apart=apart), GATE)) for apart in (5.0, 0.05))
    assert far[-1].value > 0.9
    assert near[-1].value < 0.4
    assert [one.step for one in far] == [1, 2, 3]
    assert [one.is_last for one in far] == [False, False, True]
    assert far[0].value == far[0].values[0]
    assert far[-1].values[:2] == far[1].values
    s, u = far[-1].figures["s"], far[-1].figures["u"]
    assert 0 < s <= 1
    assert 0 < u <= 1
    assert far[-1].latency_ms > 0


def test_the_same_settings_are_worth_the_same_and_others_are_not() -> None:
    bench = draw_bench(apart=0.6)
    first, again = bench.judge(GATE, 0), bench.judge(GATE, 0)
    assert (first.value, first.figures) == (again.value, again.figures)
    other = bench.judge(TrainSettings(router=RouterSettings(pca_dims=8, own_prior=50.0)), 0)
    assert other.value != first.value


def moved(surface: EmbeddedSurface) -> EmbeddedSurface:
    def far_off(images: EmbeddedImages) -> EmbeddedImages:
        return replace(images, features=images.features + np.float32(1000))

    return replace(surface, train=far_off(surface.train), val=far_off(surface.val))


def test_what_is_held_out_is_neither_learnt_nor_calibrated_on() -> None:
    """Held-out surfaces elsewhere: how the others are named and accepted stays the same to the last image."""
    bench = draw_bench(apart=0.6)
    held_out = bench.folds[0]
    surfaces = {name: moved(one) if name in held_out else one for name, one in bench.surfaces.items()}
    found, before = replace(bench, surfaces=surfaces).judge(GATE, 0), bench.judge(GATE, 0)
    assert found.figures["s"] == before.figures["s"]
    assert found.figures["u"] == 1.0 > before.figures["u"]


def test_under_the_papers_score_the_networks_decide_and_else_they_are_not_trained() -> None:
    bench = draw_bench()
    long = RouterSettings(score="paper", ce_vae_steps=80, vaegan_steps=40, hidden=32)
    short = long.model_copy(update={"ce_vae_steps": 2, "vaegan_steps": 1})
    assert bench.judge(TrainSettings(router=long), 0).value != bench.judge(TrainSettings(router=short), 0).value
    gate = [one.model_copy(update={"score": "whitened-nn", "pca_dims": 16}) for one in (long, short)]
    assert len({bench.judge(TrainSettings(router=one), 0).value for one in gate}) == 1


def test_images_of_one_group_cannot_set_a_threshold_and_be_judged() -> None:
    surfaces = draw_surfaces(number=3)
    first, second, third = surfaces
    for name in (second, third):
        one = surfaces[name]
        surfaces[name] = replace(one, val=EmbeddedImages(one.val.features[:0], []))
    with pytest.raises(DataError, match="are of one group; at least two are needed"):
        RouterBench.build(surfaces | {first: surfaces[first]}, standard_attributes(), 3, seed=0)


def plan_of(
    manifest: pa.Table, out: Path, settings: TrainSettings = SMALL, unseen: tuple[str, ...] = (UNSEEN,)
) -> TrainingPlan:
    return plan_training(manifest, str(out), with_what_is_needed(settings), 0, unseen)


def quiet(line: str) -> None:
    raise AssertionError(line)


def with_lost_files(manifest: pa.Table) -> pa.Table:
    """The manifest of a lake in which nothing that must not be read is left: unseen surfaces, and all test images."""
    rows = manifest.to_pylist()
    for row in rows:
        if row["surface"] == UNSEEN or row["split"] == "test":
            row |= {"uri": f"{row['uri']}.gone", "mask_uri": None, "etag": "other", "size_bytes": 1, "label": None}
    return pa.Table.from_pylist(rows, schema=manifest.schema)


def test_the_unseen_and_the_test_images_play_no_part(trained: Trained, tmp_path: Path) -> None:
    worths, names = [], []
    for number, manifest in enumerate((trained.manifest, with_lost_files(trained.manifest))):
        plan = plan_of(manifest, tmp_path / str(number))
        embedder = plan.embedder()
        surfaces = {name: embed_surface(plan, name, embedder, quiet) for name in plan.surfaces}
        bench = RouterBench.build(surfaces, plan.attributes, 3, 0)
        worths.append([one.value for one in outcomes(bench, GATE)])
        names.append(plan.name)
        assert UNSEEN not in str(bench.surfaces)
    assert worths[0] == worths[1]
    assert names[0] == names[1], "one study for both"


def test_features_are_kept_for_the_same_images_alone(trained: Trained, tmp_path: Path) -> None:
    plan, lines = plan_of(trained.manifest, tmp_path), list[str]()
    embedded = embed_surface(plan, SEEN[0], plan.embedder(), quiet)
    assert embedded.train.copies is None, "nothing asked for the envelope promise"
    FeatureFile(plan, SEEN[0], quiet).save(embedded)
    found = FeatureFile(plan, SEEN[0], quiet).load()
    assert found is not None
    assert np.array_equal(found.train.features, embedded.train.features)
    assert list(found.val.groups or ()) == list(embedded.val.groups or ())
    assert found.attributes == embedded.attributes
    other = plan_of(trained.manifest, tmp_path, SMALL.model_copy(update={"router": RouterSettings(crop_px=64)}))
    assert FeatureFile(other, SEEN[0], lines.append).load() is None
    assert "of other images or settings" in lines[0]
    assert FeatureFile(plan, SEEN[1], quiet).load() is None


def test_the_envelope_promise_is_judged_by_changed_copies(trained: Trained, tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"router": SMALL.router.model_copy(update={"promise": "envelope", "copies": 1})})
    plan = plan_of(trained.manifest, tmp_path, settings)
    embedder = plan.embedder()
    surfaces = {name: embed_surface(plan, name, embedder, quiet) for name in plan.surfaces}
    assert all(one.train.copies is not None for one in surfaces.values())
    bench = RouterBench.build(surfaces, plan.attributes, 3, 0)
    envelope, plain = (bench.judge(one, 0) for one in (plan.settings, SMALL))
    assert envelope.figures != plain.figures


def test_detectors_are_worth_their_validation_ap_the_smallest_surface_first(trained: Trained, tmp_path: Path) -> None:
    plan = plan_of(trained.manifest, tmp_path)
    surfaces = {name: found for name in plan.surfaces if (found := check_surface(plan, name, quiet)) is not None}
    assert set(surfaces) == set(SEEN)
    fewer = LabelledSurface(surfaces[SEEN[2]].samples[1:])
    bench = DetectorBench(surfaces | {SEEN[2]: fewer}, seed=0)
    assert bench.steps[0] == SEEN[2]
    settings = SMALL.model_copy(update={"detector": DetectorSettings(epochs=1, width=0.5)})
    first, again = (bench.judge(settings, 1) for _ in range(2))
    assert 0 < first.value <= 1
    assert first.value == again.value
    assert first.latency_ms > 0


def test_a_surface_without_defects_to_validate_on_is_left_out_and_said(trained: Trained, tmp_path: Path) -> None:
    rows = trained.manifest.to_pylist()
    for row in rows:
        if row["surface"] == SEEN[0] and row["split"] == "val":
            row |= {"label": "benign", "mask_uri": None}
    plan, lines = plan_of(pa.Table.from_pylist(rows, schema=trained.manifest.schema), tmp_path), list[str]()
    assert check_surface(plan, SEEN[0], lines.append) is None
    assert lines == [f"{SEEN[0]}: no defective validation image, so no AP: the sweep goes without this surface"]


def test_halves_never_part_a_group() -> None:
    from sbdzsl.tuning.bench import _halves

    surfaces = draw_surfaces()
    half, groups = _halves(surfaces), [group for one in surfaces.values() for group in one.val.groups or ()]
    assert set(Counter(zip(groups, half.tolist(), strict=True)).values()) == {2}
    assert 0.4 < half.mean() < 0.6
