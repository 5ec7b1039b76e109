import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sbdzsl import bundle as bundles
from sbdzsl import datasets, training
from sbdzsl.bundle import MAX_REFERENCE
from sbdzsl.config import TrainSettings
from sbdzsl.errors import DataError
from sbdzsl.image import Appearance
from sbdzsl.inspector import Inspector
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages
from sbdzsl.surface_training import SurfaceData, embedded_from, embedded_tensors, load_surface
from tests.conftest import SEEN, SMALL, UNSEEN, Trained


def rows_of(manifest: pa.Table, surface: str) -> pa.Table:
    return manifest.filter(np.array([row["surface"] == surface for row in manifest.to_pylist()]))


def changed(manifest: pa.Table, **values: object) -> pa.Table:
    return pa.Table.from_pylist([row | values for row in manifest.to_pylist()], schema=manifest.schema)


def test_an_unreadable_training_image_is_reported_and_left_out(trained: Trained, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    table = rows_of(trained.manifest, SEEN[0])
    first = next(row for row in table.to_pylist() if row["split"] == "train")
    table = pa.concat_tables(
        [table, changed(table.slice(0, 1), **(first | {"image_id": "broken", "uri": str(broken)}))]
    )
    samples = training.training_samples(table, ())[SEEN[0]]
    lines: list[str] = []
    embedder = Embedder(load_backbone(), SMALL.router)
    data = load_surface(SEEN[0], samples, embedder, SMALL.image, lines.append)
    assert data.skipped == (str(broken),)
    assert len(lines) == 1
    assert "unsupported-format" in lines[0]
    assert len(data.train) == len(data.train_embedded.features) == len(data.train_embedded.groups or ())


def test_the_same_images_at_another_place_and_of_another_age_train_the_same_bundle(
    trained: Trained, tmp_path: Path
) -> None:
    """Nothing that is drawn by a seed hangs on an image's id, which is made of its address and its age."""
    lake_folder = Path(trained.manifest_uri).parent / "lake"
    copied = shutil.copytree(lake_folder, tmp_path / "elsewhere" / "copied", copy_function=shutil.copy)
    manifest = datasets.samples_to_table(datasets.ingest("dagm", str(copied), seed=0).samples)
    assert set(manifest["image_id"].to_pylist()).isdisjoint(trained.manifest["image_id"].to_pylist())
    for column in ("surface", "label", "group", "split"):
        assert manifest[column].equals(trained.manifest[column])
    copy = str(tmp_path / "bundle")
    training.train(manifest, copy, SMALL, seed=0, unseen=(UNSEEN,), report=lambda _: None)
    ours, theirs = (json.loads(Path(url, "bundle.json").read_text()) for url in (copy, trained.bundle_url))
    assert ours["files"] == theirs["files"]


def test_naming_an_unknown_unseen_surface_is_an_error(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="marble") as caught:
        training.train(trained.manifest, str(tmp_path / "b"), SMALL, unseen=("marble",), report=lambda _: None)
    assert SEEN[0] in caught.value.message


def test_a_manifest_without_splits_is_an_error(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sbdzsl ingest"):
        training.train(changed(trained.manifest, split=None), str(tmp_path / "b"), SMALL, report=lambda _: None)


def test_too_few_images_are_an_error_that_counts_them(trained: Trained, tmp_path: Path) -> None:
    few = rows_of(trained.manifest, SEEN[0])
    few = few.filter(np.array([row["split"] == "train" for row in few.to_pylist()])).slice(0, 3)
    with pytest.raises(DataError, match="3 readable training") as caught:
        training.train(few, str(tmp_path / "b"), SMALL, report=lambda _: None)
    assert caught.value.code == "too-few-images"


def test_settings_of_one_surface_lie_over_the_common_ones() -> None:
    settings = TrainSettings(surfaces={"a": {"epochs": 3}})
    assert settings.detector_for("a").epochs == 3
    assert settings.detector_for("b") == settings.detector


def test_a_killed_training_does_not_train_a_finished_surface_again(trained: Trained, tmp_path: Path) -> None:
    """Interrupted at the second surface: the first comes from its checkpoint, the bundle is the same."""
    out, lines = str(tmp_path / "b"), list[str]()

    def stop_at_the_second(line: str) -> None:
        lines.append(line)
        if line.startswith("[2/3]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(trained.manifest, out, SMALL, unseen=(UNSEEN,), report=stop_at_the_second)
    assert any("epoch" in line for line in lines)
    lines.clear()
    bundle = training.train(trained.manifest, out, SMALL, unseen=(UNSEEN,), report=lines.append)
    first = lines[: next(i for i, line in enumerate(lines) if line.startswith("[2/3]"))]
    assert not any("epoch" in line for line in first)
    assert bundle.digest == trained.bundle.digest
    left = sorted(path.name for path in (tmp_path / "b" / "training").iterdir())
    assert left == [*(f"{surface}.{kind}" for surface in sorted(SEEN) for kind in ("json", "png")), "router"]
    pictures = sorted(path.name for path in (tmp_path / "b" / "training" / "router").iterdir())
    assert pictures == ["class_embeddings.png", "latent_space.png"]


def test_the_card_says_what_other_light_blur_noise_and_shift_do(trained: Trained) -> None:
    for surface, entry in trained.bundle.detectors.items():
        plain, *changed_rows = entry.robustness
        assert (plain.change, plain.num_good) == ("none", len(entry.good_scores))
        assert plain.fp == int((entry.good_scores > entry.threshold().value).sum())
        assert {row.change for row in changed_rows} == {"brightness", "contrast", "blur", "noise", "shift"}
        assert len(trained.bundle.card["detectors"][surface]["robustness"]) == 16


def test_the_reference_is_what_new_good_images_show(trained: Trained) -> None:
    """Verdicts on the images themselves would not do: the gate has learnt them."""
    assert set(trained.bundle.references) == set(SEEN)
    counts = trained.bundle.card["provenance"]["images"]
    inspector = Inspector(trained.bundle)
    for surface, reference in trained.bundle.references.items():
        found = [inspector.judge(row["image_id"], row["uri"]) for row in good_held_out(trained, surface)]
        assert len(found) > 0
        assert reference.brightness == tuple(verdict.brightness for verdict in found)
        assert reference.sharpness == tuple(verdict.sharpness for verdict in found)
        assert max(verdict.unseen_score for verdict in found) < 0.01
        for scores in reference.unseen_scores.values():
            assert 0 < len(scores) == len(reference.brightness)
            assert min(scores) > 0.1
    for scores in trained.bundle.router.calibration_scores.values():
        assert len(scores) == sum(counts[surface]["train"] + counts[surface]["val"] for surface in SEEN)


def test_the_reference_is_what_verdicts_say_of_images_that_were_held_out(trained: Trained, tmp_path: Path) -> None:
    router = SMALL.router.model_copy(update={"calibration": "held-out"})
    settings = SMALL.model_copy(update={"router": router})
    left_out, url = (*SEEN[1:], UNSEEN), str(tmp_path / "b")
    bundle = training.train(trained.manifest, url, settings, unseen=left_out, report=lambda _: None)
    for promise in ("plain", "envelope"):
        inspector = Inspector(bundles.load(url, promise=promise))
        found = [inspector.judge(row["image_id"], row["uri"]) for row in good_held_out(trained, SEEN[0])]
        expected = bundle.references[SEEN[0]].unseen_scores[promise]
        assert tuple(verdict.unseen_score for verdict in found) == expected


def good_held_out(trained: Trained, surface: str) -> list[dict[str, Any]]:
    return [
        row
        for row in trained.manifest.to_pylist()
        if (row["surface"], row["split"]) == (surface, "val") and row["label"] != "defect"
    ]


@pytest.mark.parametrize("with_copies", [True, False])
def test_features_come_back_from_their_file(with_copies: bool) -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    images = EmbeddedImages(drawn[:, 0], ["a"] * 4, ["x", "x", "y", "z"])
    if with_copies:
        images = EmbeddedImages(drawn[:, 0], ["a"] * 4, ["x", "x", "y", "z"], drawn[:, 1:], drawn[:, 2])
    found = embedded_from("a", embedded_tensors(images), images.groups)
    assert (found.surfaces, found.groups) == (images.surfaces, images.groups)
    for name in ("features", "copies", "even"):
        np.testing.assert_array_equal(getattr(found, name), getattr(images, name))


def test_a_reference_is_bounded_and_spread_over_the_images() -> None:
    number = 2 * MAX_REFERENCE + 7
    data = SurfaceData(
        surface="a",
        train=(),
        val=(),
        train_embedded=EmbeddedImages(np.empty((0, 1), np.float32), []),
        val_embedded=EmbeddedImages(np.empty((number, 1), np.float32), ["a"] * number),
        val_appearances=tuple(Appearance(float(i), 0.0) for i in range(number)),
        val_defective=tuple(i % 7 == 0 for i in range(number)),
        skipped=(),
        assumed_good=0,
    )
    reference = training.make_reference(data, {"plain": [1.0]})
    assert MAX_REFERENCE / 2 < len(reference.brightness) <= MAX_REFERENCE
    assert reference.brightness[-1] > number - 5
    assert not any(value % 7 == 0 for value in reference.brightness)
