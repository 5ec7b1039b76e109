import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sbdzsl import bundle as bundles
from sbdzsl import training
from sbdzsl.errors import BundleError, SbdzslError
from sbdzsl.inspector import Inspector, load_image
from tests.conftest import SEEN, SMALL, UNSEEN, Trained


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.bundle_url, tmp_path / "bundle"))


def test_a_loaded_bundle_judges_like_the_one_that_was_trained(trained: Trained) -> None:
    again = bundles.load(trained.bundle_url)
    assert again.digest == trained.bundle.digest
    assert again.surfaces == tuple(sorted(SEEN))
    row = trained.manifest.to_pylist()[0]
    first, second = (Inspector(one).judge(row["image_id"], row["uri"]) for one in (trained.bundle, again))
    assert (first.unseen_score, first.defect_score) == (second.unseen_score, second.defect_score)


def test_same_seed_same_weights(trained: Trained, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    again = training.train(
        trained.manifest, str(tmp_path / "again"), SMALL, seed=0, unseen=(UNSEEN,), report=lambda _: None
    )
    assert again.card["files"] == trained.bundle.card["files"]
    assert again.digest == trained.bundle.digest


def test_the_unseen_surface_left_no_trace(trained: Trained, tmp_path: Path) -> None:
    """Training without the unseen rows at all gives the same weights as training with them named --unseen."""
    torch.set_num_threads(1)
    mask = np.array([row["surface"] != UNSEEN for row in trained.manifest.to_pylist()])
    without = training.train(
        trained.manifest.filter(mask), str(tmp_path / "without"), SMALL, seed=0, report=lambda _: None
    )
    assert without.card["files"] == trained.bundle.card["files"]


def test_a_bundle_is_never_overwritten(trained: Trained) -> None:
    with pytest.raises(BundleError) as caught:
        training.train(trained.manifest, trained.bundle_url, SMALL, report=lambda _: None)
    assert caught.value.code == "bundle-exists"


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="sbdzsl train") as caught:
        bundles.load(str(tmp_path))
    assert caught.value.code == "no-bundle"


def test_a_changed_file_is_noticed(copied: Path) -> None:
    weights = copied / "router.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(BundleError, match=r"router\.safetensors") as caught:
        bundles.load(str(copied))
    assert caught.value.code == "damaged-bundle"


def test_a_lost_file_is_noticed(copied: Path) -> None:
    next((copied / "detectors").iterdir()).unlink()
    with pytest.raises(BundleError) as caught:
        bundles.load(str(copied))
    assert caught.value.code == "damaged-bundle"


def test_another_schema_version_is_refused(copied: Path) -> None:
    card = json.loads((copied / bundles.CARD).read_text())
    (copied / bundles.CARD).write_text(json.dumps(card | {"schema_version": 99}))
    with pytest.raises(BundleError) as caught:
        bundles.load(str(copied))
    assert caught.value.code == "wrong-version"


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.parametrize("name", ["router.pkl", "router.safetensors"])
def test_a_pickle_is_never_run(copied: Path, name: str) -> None:
    payload = pickle.dumps(Trap())
    (copied / name).write_bytes(payload)
    card = json.loads((copied / bundles.CARD).read_text())
    card["files"][name] = hashlib.sha256(payload).hexdigest()
    (copied / bundles.CARD).write_text(json.dumps(card))
    with pytest.raises(SbdzslError) as caught:
        bundles.load(str(copied))
    assert caught.value.code in ("unsafe-file", "damaged-bundle")


def test_the_card_says_what_made_the_bundle(trained: Trained) -> None:
    provenance = trained.bundle.card["provenance"]
    assert provenance["held_out_as_unseen"] == [UNSEEN]
    assert set(provenance["images"]) == set(SEEN)
    assert provenance["seed"] == 0
    for surface, entry in trained.bundle.detectors.items():
        stored = trained.bundle.card["detectors"][surface]["threshold"]
        assert stored["value"] == entry.threshold().value
        assert stored["num_good"] == len(entry.good_scores)
        assert stored["rule"]["false_alarm_rate"] == 0.02
        scores = (trained.bundle.card["detectors"][surface][kind] for kind in ("good_scores", "defect_scores"))
        raw = b"|".join(np.sort(np.array(kind, "<f8")).tobytes() for kind in scores)
        assert stored["data_digest"] == hashlib.sha256(raw).hexdigest()


def test_held_out_scores_are_those_of_the_stored_detector(trained: Trained) -> None:
    surface = SEEN[0]
    entry = trained.bundle.detectors[surface]
    rows = [
        r for r in trained.manifest.to_pylist() if (r["surface"], r["split"], r["label"]) == (surface, "val", "benign")
    ]
    scores = []
    for row in rows:
        image = load_image(row["image_id"], row["uri"], trained.bundle.settings.image).image
        assert image is not None
        scores.append(entry.detector.detect(image.grey()).score)
    assert sorted(scores) == sorted(entry.good_scores.tolist())
