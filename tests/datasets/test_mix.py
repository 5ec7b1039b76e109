"""DAGM_MIX: what is chosen, and that no copy of a validation image is trained on."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from sbdzsl import image, lake
from sbdzsl.datasets import ADAPTERS
from sbdzsl.datasets.mix import augment_mix, build_mix
from sbdzsl.datasets.sample import Sample, group_of, load_mask
from sbdzsl.errors import DataError

SIZE = 24


def make(surface: str, label: str | None, number: int, group: str | None = None) -> Sample:
    return Sample(f"{surface}{number}", f"/{surface}/{number}.png", surface=surface, label=label, group=group)  # type: ignore[arg-type]


def population(surface: str, num_benign: int, num_defects: int) -> list[Sample]:
    return [make(surface, "benign" if k < num_benign else "defect", k) for k in range(num_benign + num_defects)]


def counts(mix: list[Sample]) -> Counter[tuple[str | None, str | None, str | None]]:
    return Counter((s.surface, s.label, s.split) for s in mix)


def test_seen_surfaces_are_balanced_and_divided_8_to_2_and_unseen_ones_are_test() -> None:
    samples = (
        population("a", 1000, 150) + population("b", 2000, 400) + population("c", 500, 70) + population("d", 90, 0)
    )
    mix = build_mix(samples, unseen=["c", "d"], seed=0)
    assert counts(mix) == {
        ("a", "benign", "train"): 240,
        ("a", "benign", "val"): 60,
        ("a", "defect", "train"): 120,
        ("a", "defect", "val"): 30,
        ("b", "benign", "train"): 240,
        ("b", "benign", "val"): 60,
        ("b", "defect", "train"): 240,
        ("b", "defect", "val"): 60,
        ("c", "benign", "test"): 70,
        ("c", "defect", "test"): 70,
        ("d", "benign", "test"): 90,
    }


def test_surfaces_without_benign_or_without_labels_take_part() -> None:
    mix = build_mix(population("neu", 0, 500) + [make("kth", None, k) for k in range(81)], unseen=[], seed=0)
    assert {key: n for key, n in counts(mix).items() if key[2] == "train"} == {
        ("neu", "defect", "train"): 240,
        ("kth", None, "train"): 65,
    }


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    samples = population("a", 400, 50) + population("b", 40, 5)
    mix = build_mix(samples, ["b"], seed=3)
    shuffled = samples.copy()
    random.Random(1).shuffle(shuffled)
    assert set(build_mix(shuffled, ["b"], seed=3)) == set(mix)
    assert set(build_mix(samples, ["b"], seed=4)) != set(mix)


def test_a_mix_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="no surface z; the manifest has a"):
        build_mix(population("a", 3, 1), ["z"], seed=0)
    with pytest.raises(DataError, match="all surfaces are unseen"):
        build_mix(population("a", 3, 1), ["a"], seed=0)
    with pytest.raises(DataError, match="has no surface"):
        build_mix([Sample("x", "/x.png"), *population("a", 3, 1)], [], seed=0)


@pytest.fixture
def real(tmp_path: Path) -> list[Sample]:
    """Two surfaces, one of them 16-bit, whose images can be told apart; defect images have a mask."""
    rng = np.random.default_rng(0)
    for surface, dtype, white in (("a", np.uint8, 255), ("b", np.uint16, 65535)):
        for k in range(30):
            role = "defect" if k < 8 else "benign"
            target = tmp_path / "in" / surface / role / f"{k}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.uniform(0.2 * white, 0.8 * white, (SIZE, SIZE))
            cv2.imwrite(str(target), pixels.astype(dtype))
            if role == "defect":
                mask = np.zeros((SIZE, SIZE), np.uint8)
                mask[2:6, 3:12] = 255
                (tmp_path / "in" / surface / "masks").mkdir(exist_ok=True)
                cv2.imwrite(str(tmp_path / "in" / surface / "masks" / f"{k}.png"), mask)
    return ADAPTERS["folder"](str(tmp_path / "in"), None)


def test_train_defects_are_augmented_up_to_the_benign_images_and_nothing_leaks(
    real: list[Sample], tmp_path: Path
) -> None:
    mix = build_mix(real, [], seed=1)
    whole = augment_mix(mix, str(tmp_path / "out"), seed=1)
    assert whole[: len(mix)] == mix
    numbers = counts(whole)
    for surface in ("a", "b"):
        assert numbers[surface, "defect", "train"] == numbers[surface, "benign", "train"]
        assert numbers[surface, "defect", "val"] == counts(mix)[surface, "defect", "val"] > 0
    splits: dict[tuple[str, str], set[str | None]] = {}
    for sample in whole:
        splits.setdefault(group_of(sample), set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    originals = {group_of(sample) for sample in mix if sample.split == "train" and sample.label == "defect"}
    copies = whole[len(mix) :]
    assert copies
    assert {group_of(copy) for copy in copies} == originals
    assert len({copy.image_id for copy in whole}) == len(whole)


def test_a_copy_is_its_source_turned_with_mask_depth_and_brightness_in_bounds(
    real: list[Sample], tmp_path: Path
) -> None:
    mix = build_mix(real, [], seed=1)
    by_group = {group_of(sample): sample for sample in mix}
    for copy in augment_mix(mix, str(tmp_path / "out"), seed=1)[len(mix) :]:
        source = by_group[group_of(copy)]
        before, after = (image.decode(lake.read_bytes(s.uri)).pixels for s in (source, copy))
        assert after.dtype == before.dtype
        mask = load_mask(copy, (SIZE, SIZE))
        source_mask = load_mask(source, (SIZE, SIZE))
        assert mask is not None
        assert source_mask is not None
        turned = [
            (flipped, mask_flipped)
            for k in range(4)
            for flipped, mask_flipped in (
                (np.rot90(before, k), np.rot90(source_mask, k)),
                (np.rot90(before, k)[:, ::-1], np.rot90(source_mask, k)[:, ::-1]),
            )
        ]
        ratios = [(after.astype(float) / pixels, pixels_mask) for pixels, pixels_mask in turned]
        match = min(range(8), key=lambda k: ratios[k][0].std())
        assert match != 0
        assert ratios[match][0].std() < 0.01
        assert 0.89 < ratios[match][0].mean() < 1.11
        assert np.array_equal(mask, ratios[match][1])


def test_the_same_seed_writes_the_same_bytes(real: list[Sample], tmp_path: Path) -> None:
    mix = build_mix(real, [], seed=1)
    for folder in ("one", "two"):
        augment_mix(mix, str(tmp_path / folder), seed=5)
    one, two = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.png"))}
        for folder in ("one", "two")
    )
    assert one
    assert one == two


def test_oblong_images_keep_their_size(tmp_path: Path) -> None:
    for role, count in (("benign", 12), ("defect", 4)):
        (tmp_path / "in" / role).mkdir(parents=True)
        for k in range(count):
            cv2.imwrite(str(tmp_path / "in" / role / f"{k}.png"), np.full((20, 40), 100 + k, np.uint8))
    mix = build_mix(ADAPTERS["folder"](str(tmp_path / "in"), "strip"), [], seed=0)
    copies = augment_mix(mix, str(tmp_path / "out"), seed=0)[len(mix) :]
    assert copies
    assert {image.decode(lake.read_bytes(copy.uri)).pixels.shape for copy in copies} == {(20, 40)}
    assert {copy.mask_uri for copy in copies} == {None}
