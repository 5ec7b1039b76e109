import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from sbdzsl import evaluation, metrics
from sbdzsl.bootstrap import RESAMPLES
from sbdzsl.config import ThresholdRule
from sbdzsl.datasets.sample import load_mask, samples_from_table
from sbdzsl.errors import DataError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.pixel_metrics import PixelTally
from sbdzsl.report import evaluation_page
from tests.conftest import SEEN, UNSEEN, Trained


@pytest.fixture(scope="module")
def found(trained: Trained) -> evaluation.Evaluation:
    return evaluation.evaluate(trained.bundle, trained.manifest, with_robustness=True)


def test_figures_follow_from_the_verdicts(trained: Trained, found: evaluation.Evaluation) -> None:
    figures, verdicts = found.figures, found.verdicts
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


def test_detector_figures_are_of_the_images_own_surface(trained: Trained, found: evaluation.Evaluation) -> None:
    inspector, surface = Inspector(trained.bundle), SEEN[0]
    labels, scores, pixels = [], [], PixelTally()
    for sample in samples_from_table(trained.manifest):
        if sample.surface == surface and sample.split == "test":
            image = load_image(sample.image_id, sample.uri, trained.bundle.settings.image).image
            assert image is not None
            detection, map_ = inspector.detect(image.grey(), surface)
            labels.append(sample.label == "defect")
            scores.append(detection.defect_score)
            mask = load_mask(sample, (128, 128))
            assert mask is not None
            pixels.add(map_.heat(), mask)
    figures, truth, raw = found.figures["surfaces"][surface], np.array(labels), np.array(scores)
    threshold = inspector.threshold(surface)
    at_threshold, best = metrics.confusion(truth, raw, threshold.value), metrics.best_f1(truth, raw)
    assert best is not None
    platt = trained.bundle.detectors[surface].platt
    assert platt is not None
    probabilities = np.array([platt.probability(score) for score in raw])
    expected = {
        "ap": metrics.average_precision(truth, raw),
        "ap_trapezoid": metrics.average_precision_trapezoid(truth, raw),
        "auroc": metrics.auroc(truth, raw),
        "f1": at_threshold.f1,
        "fp": at_threshold.false_positives,
        "fn": at_threshold.false_negatives,
        "false_alarms_at_full_recall": metrics.false_alarms_at_full_recall(truth, raw),
        "calibration_error": metrics.expected_calibration_error(truth, probabilities),
        "pixel_ap": pixels.ap(),
        "aupro": pixels.aupro(),
        "best_f1_on_test": best.f1,
        "threshold_of_best_f1_on_test": best.threshold,
        "fp_at_best_f1_on_test": best.confusion.false_positives,
        "threshold": threshold.value,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["threshold_policy"] == "false-alarm-rate:0.02"
    assert figures["pixels"]["mask_kinds"] == ["ellipse"]
    assert figures["pixels"]["num_images"] == len(labels)


def test_every_figure_has_an_interval_around_it(found: evaluation.Evaluation) -> None:
    for row in (*(found.figures["surfaces"][surface] for surface in SEEN), found.figures["pooled"]):
        assert {"ap", "ap_trapezoid", "auroc", "f1", "fp", "fn", "best_f1_on_test"} <= set(row["intervals"])
        for name, (low, high) in row["intervals"].items():
            assert low - 1e-9 <= row[name] <= high + 1e-9 or name in ("best_f1_on_test", "calibration_error")
    assert RESAMPLES == 1000


def test_pooled_figures_sum_the_errors_and_rank_by_calibrated_probability(found: evaluation.Evaluation) -> None:
    rows, pooled = [found.figures["surfaces"][surface] for surface in SEEN], found.figures["pooled"]
    assert (pooled["surfaces"], pooled["left_out"]) == (sorted(SEEN), [])
    for name in ("fp", "fn", "num_good", "num_defect"):
        assert pooled[name] == sum(row[name] for row in rows)
    scores = [found.scores[surface] for surface in SEEN]
    labels = np.concatenate([one.labels for one in scores])
    logits = np.concatenate([one.platt.logit(one.scores) for one in scores if one.platt])
    assert pooled["auroc"] == pytest.approx(metrics.auroc(labels, logits))
    assert found.figures["mean"]["ap"] == pytest.approx(np.mean([row["ap"] for row in rows]))


def test_the_threshold_in_force_is_the_one_asked_for(trained: Trained) -> None:
    found = evaluation.evaluate(trained.bundle, trained.manifest, ThresholdRule.parse("fixed:1e9"))
    for surface in SEEN:
        row = found.figures["surfaces"][surface]
        assert (row["threshold"], row["fp"], row["fn"]) == (1e9, 0, row["num_defect"])
        assert row["miss_rate"] == 1
        assert row["miss_range"][1] == 1


def test_robustness_is_measured_at_the_threshold_in_force(found: evaluation.Evaluation) -> None:
    row = found.figures["surfaces"][SEEN[0]]
    unchanged = row["robustness"][0]
    assert unchanged["change"] == "none"
    assert [unchanged[name] for name in ("ap", "fp", "fn")] == [row[name] for name in ("ap", "fp", "fn")]
    assert len(row["robustness"]) == 16


def changed(manifest: pa.Table, **values: object) -> pa.Table:
    """The test rows of the first surface, the defective ones with other values."""
    rows = [row for row in manifest.to_pylist() if (row["surface"], row["split"]) == (SEEN[0], "test")]
    return pa.Table.from_pylist(
        [row | values if row["label"] == "defect" else row for row in rows], schema=manifest.schema
    )


def test_a_mask_that_cannot_be_read_is_listed_and_left_out(trained: Trained, tmp_path: Path) -> None:
    gone = evaluation.evaluate(trained.bundle, changed(trained.manifest, mask_uri=str(tmp_path / "gone.png")))
    row = gone.figures["surfaces"][SEEN[0]]
    assert row["ap"] is not None
    assert row["pixel_ap"] is row["aupro"] is None
    assert (
        row["pixels"]["mask_errors"] == [{"uri": str(tmp_path / "gone.png"), "code": "not-found"}] * row["num_defect"]
    )
    assert row["pixels"]["num_images"] == row["num_good"]


def test_without_defects_the_figures_that_need_them_are_none(trained: Trained, tmp_path: Path) -> None:
    rows = changed(trained.manifest)
    good = rows.filter(np.array([row["label"] == "benign" for row in rows.to_pylist()]))
    found = evaluation.evaluate(trained.bundle, good)
    row = found.figures["surfaces"][SEEN[0]]
    names = ("ap", "auroc", "f1", "fn", "best_f1_on_test", "miss_rate", "threshold_of_best_f1_on_test", "pixel_ap")
    assert [row[name] for name in names] == [None] * len(names)
    assert row["fp"] is not None
    evaluation_page.write_evaluation(found, trained.bundle, str(tmp_path))
    assert (tmp_path / f"{SEEN[0]}-precision-recall.png").exists()


def test_a_manifest_without_test_rows_is_an_error(trained: Trained) -> None:
    train_only = trained.manifest.filter(np.array([row["split"] == "train" for row in trained.manifest.to_pylist()]))
    with pytest.raises(DataError, match="split 'test'"):
        evaluation.evaluate(trained.bundle, train_only)


def test_the_page_shows_each_surface_with_its_pictures(trained: Trained, tmp_path: Path) -> None:
    everything_alarms = evaluation.evaluate(trained.bundle, trained.manifest, ThresholdRule.parse("fixed:-1e9"))
    target = evaluation_page.write_evaluation(everything_alarms, trained.bundle, str(tmp_path))
    page = Path(target).read_text()
    for surface in SEEN:
        for kind in ("precision-recall", "scores", "errors"):
            picture = cv2.imread(str(tmp_path / f"{surface}-{kind}.png"))
            assert picture is not None
            assert picture.std() > 5
            assert f'src="{surface}-{kind}.png"' in page
    assert "<script" not in page
    assert set(re.findall(r'src="([^"]+)"', page)) == {path.name for path in tmp_path.glob("*.png")}


def test_a_missed_defect_is_framed_by_its_label(trained: Trained, tmp_path: Path) -> None:
    missed = evaluation.evaluate(trained.bundle, trained.manifest, ThresholdRule.parse("fixed:1e9"))
    evaluation_page.write_evaluation(missed, trained.bundle, str(tmp_path))
    row = missed.figures["surfaces"][SEEN[0]]
    page = (tmp_path / "index.html").read_text()
    assert f"{min(row['fn'], evaluation_page.MAX_ERRORS)} of {row['fn']} errors" in page


def test_names_on_the_page_are_escaped(trained: Trained, found: evaluation.Evaluation, tmp_path: Path) -> None:
    name = "<b>steel & co</b>"
    scores = found.scores[SEEN[0]]
    hostile = evaluation.Evaluation(
        found.figures | {"surfaces": {name: found.figures["surfaces"][SEEN[0]]}},
        found.verdicts,
        {name: evaluation.SurfaceScores(name, scores.threshold, scores.platt, scores.samples, scores.raw)},
    )
    bundle = trained.bundle
    renamed = type(bundle)(
        bundle.settings,
        bundle.backbone,
        bundle.router,
        {name: bundle.detectors[SEEN[0]]},
        bundle.references,
        bundle.card,
        bundle.digest,
    )
    page = Path(evaluation_page.write_evaluation(hostile, renamed, str(tmp_path))).read_text()
    assert "&lt;b&gt;steel &amp; co" in page
    assert "<b>steel" not in page
