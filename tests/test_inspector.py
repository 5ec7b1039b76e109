from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sbdzsl import evaluation, lake
from sbdzsl import image as images
from sbdzsl.calibration import conformal_p_value
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import ConfigError, ImageError, LakeError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.runtime import Runtime
from sbdzsl.verdict import Verdict, to_parquet, verdict_table
from tests import hostile
from tests.conftest import SEEN, UNSEEN, Trained

#: Fields that depend on the clock and not on the image.
CLOCKED = {"inspected_at", "decode_ms", "route_ms", "detect_ms"}


def timeless(verdict: Verdict) -> dict[str, object]:
    return {name: value for name, value in verdict.to_row().items() if name not in CLOCKED}


def test_a_verdict_follows_from_its_scores_and_thresholds(trained: Trained) -> None:
    inspector = Inspector(trained.bundle)
    kinds = set()
    for row in trained.manifest.to_pylist():
        verdict = inspector.judge(row["image_id"], row["uri"])
        kinds.add(verdict.verdict)
        assert verdict.unseen_score is not None
        assert verdict.unseen_threshold is not None
        assert (verdict.verdict == "unseen") == (verdict.unseen_score > verdict.unseen_threshold)
        if verdict.verdict == "unseen":
            assert verdict.defect_score is None
            assert verdict.regions == ()
        else:
            assert verdict.defect_score is not None
            assert verdict.defect_threshold is not None
            assert (verdict.verdict == "defect") == (verdict.defect_score > verdict.defect_threshold)
        assert len(verdict.class_embedding) == len(trained.bundle.router.attribute_names)
        assert verdict.bundle == trained.bundle.digest
        assert verdict.describe()
        height, width = 128, 128
        for region in verdict.regions:
            assert 0 <= region.x < region.x + region.width <= width
            assert 0 <= region.y < region.y + region.height <= height
    assert kinds >= {"good", "defect", "unseen"}


def test_the_verdict_does_not_depend_on_what_came_before(trained: Trained) -> None:
    rows = trained.manifest.to_pylist()[:12]
    inspector = Inspector(trained.bundle)
    forward = {row["image_id"]: inspector.judge(row["image_id"], row["uri"]) for row in rows}
    for row in reversed(rows):
        again = inspector.judge(row["image_id"], row["uri"])
        assert timeless(again) == timeless(forward[row["image_id"]])


def test_the_number_of_threads_does_not_change_a_bit(trained: Trained) -> None:
    rng = np.random.default_rng(0)
    images = [rng.random(shape, dtype=np.float32) for shape in ((512, 512), (500, 1260), (200, 231), (128, 128))]
    inspector, found = Inspector(trained.bundle), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for grey in images:
                answers = inspector.route(grey), *(inspector.detect(grey, surface)[0] for surface in SEEN)
                found.append((threads, answers))
    finally:
        torch.set_num_threads(before)
    assert [answers for threads, answers in found if threads == 1] == [a for threads, a in found if threads == 2]


def test_evaluate_gives_the_inspectors_verdicts_to_the_bit(trained: Trained) -> None:
    inspector = Inspector(trained.bundle)
    found = evaluation.evaluate(trained.bundle, trained.manifest)
    assert found.figures["num_images"] == len(found.verdicts) > 0
    for verdict in found.verdicts:
        assert timeless(verdict) == timeless(inspector.judge(verdict.image_id, verdict.uri))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_another_runtime_gives_the_verdicts_by_evaluate_and_inspect_alike(trained: Trained, runtime: Runtime) -> None:
    rows = trained.manifest.filter(trained.manifest["split"].to_numpy(zero_copy_only=False) == "test").slice(0, 9)
    inspector, by_torch = Inspector(trained.bundle, runtime=runtime), Inspector(trained.bundle)
    for verdict in evaluation.evaluate(trained.bundle, rows, runtime=runtime).verdicts:
        assert timeless(verdict) == timeless(inspector.judge(verdict.image_id, verdict.uri))
        expected = by_torch.judge(verdict.image_id, verdict.uri)
        assert verdict.verdict == expected.verdict
        assert verdict.unseen_score == pytest.approx(expected.unseen_score, abs=1e-3)
        assert verdict.defect_score == (expected.defect_score and pytest.approx(expected.defect_score, abs=1e-3))


def test_another_runtime_does_not_pretend_to_run_on_a_gpu(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="runs on the cpu"):
        Inspector(trained.bundle, device="cuda", runtime="onnxruntime")


def test_hostile_files_get_a_verdict_or_a_code_and_never_a_crash(trained: Trained, tmp_path: Path) -> None:
    inspector = Inspector(trained.bundle)
    files = hostile.draw(tmp_path)
    assert len(files) >= 30
    verdicts = []
    for name, _, expected in files:
        verdict = inspector.judge(name, str(tmp_path / name))
        verdicts.append(verdict)
        if isinstance(expected, str):
            assert (verdict.verdict, verdict.error_code) == ("error", expected), name
        else:
            assert verdict.verdict in ("good", "defect", "unseen"), f"{name}: {verdict.error_detail}"
    assert verdict_table(verdicts).num_rows == len(files)


def test_an_image_above_the_memory_ceiling_is_a_row(trained: Trained) -> None:
    inspector = Inspector(trained.bundle)
    verdicts = (inspector.judge(row["image_id"], row["uri"]) for row in trained.manifest.to_pylist())
    judged = next(verdict for verdict in verdicts if verdict.defect_score is not None)
    above = Inspector(trained.bundle, max_memory_mb=1).judge(judged.image_id, judged.uri)
    assert (above.verdict, above.error_code) == ("error", "too-large")
    assert "max_memory_mb is 1" in (above.error_detail or "")
    assert (above.surface, above.unseen_score) == (judged.surface, judged.unseen_score)
    assert above.defect_score is None


def test_a_missing_file_is_a_row(trained: Trained, tmp_path: Path) -> None:
    verdict = Inspector(trained.bundle).judge("x", str(tmp_path / "gone.png"))
    assert (verdict.verdict, verdict.error_code) == ("error", "not-found")
    assert verdict.result_evaluation == 0


def test_another_policy_moves_the_threshold_and_not_the_score(trained: Trained) -> None:
    row = next(row for row in trained.manifest.to_pylist() if row["surface"] != UNSEEN)
    loaded = load_image(row["image_id"], row["uri"], trained.bundle.settings.image)
    assert loaded.image is not None
    found = {
        word: Inspector(trained.bundle, ThresholdRule.parse(word)).detect(loaded.image.grey(), row["surface"])[0]
        for word in ("false-alarm-rate:0.1", "max-f1", "zero-misses", "cost:20@0.01", "fixed:3.2")
    }
    assert len({one.defect_score for one in found.values()}) == 1
    assert {one.threshold_policy for one in found.values()} == set(found)


def test_a_surface_the_bundle_does_not_know_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="brushed_steel"):
        Inspector(trained.bundle).detect(np.zeros((128, 128), np.float32), UNSEEN)


def test_surfaces_may_have_policies_of_their_own(trained: Trained) -> None:
    common, own = ThresholdRule.parse("zero-misses"), ThresholdRule.parse("fixed:3.2")
    inspector = Inspector(trained.bundle, common, surface_policies={SEEN[1]: own})
    assert {surface: inspector.threshold(surface).rule for surface in SEEN} == {
        SEEN[0]: common,
        SEEN[1]: own,
        SEEN[2]: common,
    }
    with pytest.raises(ConfigError, match="brushed_stel"):
        Inspector(trained.bundle, surface_policies={"brushed_stel": own})


def test_content_that_was_read_before_gives_the_same_verdict(trained: Trained) -> None:
    row, inspector = trained.manifest.to_pylist()[0], Inspector(trained.bundle)
    settings, content = trained.bundle.settings.image, lake.read_bytes(row["uri"])
    given = load_image(row["image_id"], "memory://not/there.png", settings, content=content)
    verdict = inspector.decide(given)
    expected = inspector.judge(row["image_id"], row["uri"])
    assert timeless(verdict) | {"uri": ""} == timeless(expected) | {"uri": ""}
    assert (verdict.image_width, verdict.image_height) == (128, 128)
    image = images.decode(content)
    assert (verdict.brightness, verdict.sharpness) == (image.appearance().brightness, image.appearance().sharpness)


def test_an_error_of_an_earlier_reading_and_the_files_time_are_kept(trained: Trained) -> None:
    moment = datetime(2026, 3, 1, tzinfo=timezone.utc)
    for error in (LakeError("forbidden", "no"), ImageError("too-large", "9 bytes")):
        loaded = load_image("x", "a.png", trained.bundle.settings.image, 12, moment, error)
        verdict = Inspector(trained.bundle).decide(loaded)
        assert (verdict.verdict, verdict.error_code) == ("error", error.code)
        assert (verdict.modified_at, verdict.bit_depth, verdict.brightness) == (moment, 12, None)
        assert verdict.to_json()["modified_at"] == "2026-03-01T00:00:00+00:00"


def test_the_p_value_is_the_rank_among_calibration_images(trained: Trained) -> None:
    row = trained.manifest.to_pylist()[0]
    verdict = Inspector(trained.bundle).judge(row["image_id"], row["uri"])
    assert verdict.unseen_p_value is not None
    assert verdict.unseen_score is not None
    expected = conformal_p_value(trained.bundle.router.calibration_scores["plain"], verdict.unseen_score)
    assert verdict.unseen_p_value == pytest.approx(expected)


def test_rows_survive_the_table(trained: Trained, tmp_path: Path) -> None:
    row = trained.manifest.to_pylist()[0]
    verdict = Inspector(trained.bundle).judge(row["image_id"], row["uri"])
    lake.write_bytes(str(tmp_path / "v.parquet"), to_parquet([verdict]))
    back = pq.read_table(tmp_path / "v.parquet").to_pylist()[0]
    assert back["defect_score"] == verdict.defect_score
    assert back["unseen_score"] == verdict.unseen_score
    assert back["inspected_at"] == verdict.inspected_at


def test_a_fault_of_a_decoder_is_an_error_of_the_image(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("no such directory")

    monkeypatch.setattr(images, "decode", broken)
    verdict = Inspector(trained.bundle).judge("id", trained.manifest["uri"][0].as_py())
    assert (verdict.verdict, verdict.error_code) == ("error", "unreadable")
    assert "TypeError: no such directory" in str(verdict.error_detail)
