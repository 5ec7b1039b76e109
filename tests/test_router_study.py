"""The router's benchmark touches unseen surfaces in the test alone and never splits a group."""

from dataclasses import replace

import numpy as np
import pytest
import real_surfaces
import sbad_gzsl
from router_scores import Fitted, Score

from sbdzsl.sbad.attributes import AttributeTable
from sbdzsl.sbad.fit import EmbeddedImages, fit_router

NAMES = [f"surface_{k}" for k in range(10)]
IMAGES, GROUP, DIMS = 24, 3, 20


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> real_surfaces.RealSurfaces:
    """Ten made-up surfaces of eight groups of three images."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((len(NAMES), DIMS)) * 4, IMAGES, axis=0)
    clean = (centres + rng.standard_normal(centres.shape)).astype(np.float32)
    surfaces = np.repeat(NAMES, IMAGES)
    groups = np.array([f"{name}/{i // GROUP}" for name in NAMES for i in range(IMAGES)])
    noise = rng.standard_normal((len(clean), 3, DIMS)).astype(np.float32)
    found = real_surfaces.RealSurfaces(
        clean=clean,
        copies=clean[:, None] + noise[:, :2],
        even=clean[:, None] + noise[:, 2:],
        changed=np.repeat(clean[:, None], len(real_surfaces.CHANGED), axis=1),
        surfaces=surfaces,
        kinds=surfaces,
        groups=groups,
        defective=np.arange(len(clean)) % 2 == 0,
        files=groups,
    )
    monkeypatch.setattr(sbad_gzsl, "_data", found, raising=False)
    return found


def test_groups_are_never_split_and_unseen_surfaces_are_for_the_test(data: real_surfaces.RealSurfaces) -> None:
    for seed in range(5):
        split = sbad_gzsl.random_split(data.surfaces, seed)
        parts = (split.train, split.calibration, split.test, split.unseen)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(data.clean)))
        groups = [set(data.groups[part].tolist()) for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups))
        assert len(split.seen) == 8
        assert not set(split.seen) & set(data.surfaces[split.unseen].tolist())
        for part in parts[:3]:
            assert set(data.surfaces[part].tolist()) == set(split.seen)


@pytest.mark.parametrize("name", [name for name in sbad_gzsl.METHODS if name != sbad_gzsl.PAPER])
def test_no_score_sees_an_unseen_image_before_the_test(
    data: real_surfaces.RealSurfaces, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, method = sbad_gzsl.random_split(data.surfaces, 0), sbad_gzsl.METHODS[name]
    query = data.clean[split.test]
    expected = sbad_gzsl.fit_one(split, method)
    poisoned = {part: getattr(data, part).copy() for part in ("clean", "copies", "even", "changed")}
    for features in poisoned.values():
        features[split.unseen] = np.nan
        features[split.test] = np.nan
    monkeypatch.setattr(sbad_gzsl, "_data", replace(data, **poisoned))
    found = sbad_gzsl.fit_one(split, method)
    np.testing.assert_array_equal(found.score(query), expected.score(query))
    np.testing.assert_array_equal(found.held_out, expected.held_out)
    assert len(found.held_out) == len(split.known if method.crossed else split.calibration)


@pytest.mark.parametrize("way", ["held-out", "cross-fitted"])
def test_the_threshold_is_the_routers(data: real_surfaces.RealSurfaces, way: str) -> None:
    """What the study measures is what a training makes of the same images."""
    split = sbad_gzsl.random_split(data.surfaces, 0)
    train, calibration = (
        EmbeddedImages(data.clean[own], split.names[own].tolist(), data.groups[own].tolist())
        for own in (split.train, split.calibration)
    )
    table = AttributeTable(("round",), dict.fromkeys(NAMES, (0.5,)))
    settings = sbad_gzsl.SETTINGS.model_copy(update={"calibration": way, "class_embedding": "real", "vaegan_steps": 0})
    router = fit_router(train, calibration, table, settings, 0).router
    fitted = sbad_gzsl.fit_one(split, sbad_gzsl.METHODS["gate" if way == "cross-fitted" else "gate, held out"])
    np.testing.assert_array_equal(router.calibration_scores["plain"], np.sort(fitted.held_out))


def test_figures_of_a_perfect_and_of_a_blind_score(data: real_surfaces.RealSurfaces) -> None:
    split = sbad_gzsl.random_split(data.surfaces, 0)
    centres = np.stack([data.clean[data.surfaces == name].mean(axis=0) for name in split.seen])
    perfect = figures_of(split, lambda x: np.linalg.norm(x[:, None] - centres, axis=2).astype(np.float64), data)
    assert perfect["U@5%"] == 100
    assert perfect["naming"] == 100
    assert perfect["auroc"] == pytest.approx(100)
    assert perfect["ausuc"] == pytest.approx(100)
    assert perfect["fpr95"] == 0
    blind = figures_of(split, lambda x: np.tile(np.arange(8.0), (len(x), 1)), data)
    assert (blind["U@5%"], blind["H@5%"], blind["auroc"]) == (0, 0, 50)
    assert blind["naming"] == pytest.approx(100 / 8)


def figures_of(split: sbad_gzsl.Split, score: Score, data: real_surfaces.RealSurfaces) -> sbad_gzsl.Figures:
    held_out = score(data.clean[split.calibration]).min(axis=1)
    return sbad_gzsl.figures(split, Fitted(score, held_out), data.clean)
