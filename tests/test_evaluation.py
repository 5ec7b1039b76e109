import json

import numpy as np
import pytest

from sbdzsl import evaluation
from sbdzsl.errors import DataError
from sbdzsl.inspector import Inspector
from sbdzsl.metrics import average_precision
from tests.conftest import SEEN, UNSEEN, Trained


def test_figures_follow_from_the_verdicts(trained: Trained) -> None:
    figures, verdicts = evaluation.evaluate(trained.bundle, trained.manifest)
    json.dumps(figures, allow_nan=False)
    truth = {row["image_id"]: row for row in trained.manifest.to_pylist()}
    assert {truth[v.image_id]["split"] for v in verdicts} == {"test"}
    flagged = [v.verdict == "unseen" for v in verdicts if truth[v.image_id]["surface"] == UNSEEN]
    assert figures["u"] == pytest.approx(np.mean(flagged))
    right = {
        surface: np.mean(
            [
                v.verdict != "unseen" and v.surface == surface
                for v in verdicts
                if truth[v.image_id]["surface"] == surface
            ]
        )
        for surface in SEEN
    }
    assert figures["s"] == pytest.approx(np.mean(list(right.values())))
    assert set(figures["surfaces"]) == {*SEEN, UNSEEN}
    assert figures["surfaces"][UNSEEN] == {"seen": False, "num_images": len(flagged)}
    assert set(figures["budgets"]) == {"0.02", "0.05"}


def test_detector_figures_are_of_the_images_own_surface(trained: Trained) -> None:
    figures, _ = evaluation.evaluate(trained.bundle, trained.manifest)
    inspector, surface = Inspector(trained.bundle), SEEN[0]
    labels, scores = [], []
    for row in trained.manifest.to_pylist():
        if row["surface"] == surface and row["split"] == "test":
            image = evaluation.load_image(row["image_id"], row["uri"], trained.bundle.settings.image).image
            assert image is not None
            labels.append(row["label"] == "defect")
            scores.append(inspector.detect(image.grey(), surface)[0].defect_score)
    assert figures["surfaces"][surface]["ap"] == average_precision(np.array(labels), np.array(scores))
    missed = sum(
        label and score <= inspector.threshold(surface).value for label, score in zip(labels, scores, strict=True)
    )
    assert figures["surfaces"][surface]["fn"] == missed


def test_a_manifest_without_test_rows_is_an_error(trained: Trained) -> None:
    train_only = trained.manifest.filter(np.array([row["split"] == "train" for row in trained.manifest.to_pylist()]))
    with pytest.raises(DataError, match="split 'test'"):
        evaluation.evaluate(trained.bundle, train_only)
