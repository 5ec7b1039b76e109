"""Reviews stand beside verdicts, and what they say reaches the next training and the thresholds."""

import asyncio
import hashlib
import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.cli import main
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import DataError, LakeError, SbdzslError, ServiceError
from sbdzsl.inspector import Inspector
from sbdzsl.serving import recalibration, reviews
from sbdzsl.serving.answers import Shot, answer_document
from sbdzsl.serving.journal import stored_events
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import Job, load_job
from sbdzsl.serving.settings import KeepSettings
from sbdzsl.training import training_samples
from sbdzsl.verdict import Verdict
from tests.conftest import SEEN, UNSEEN, Trained

STEEL = SEEN[0]


def scored(number: int, score: float, threshold: float, bundle: str, surface: str = STEEL) -> dict[str, Any]:
    verdict = Verdict(
        image_id=hashlib.sha256(b"%d" % number).hexdigest(),
        uri=f"image{number}",
        verdict="defect" if score > threshold else "good",
        bundle=bundle,
        surface=surface,
        defect_score=score,
        defect_threshold=threshold,
    )
    return answer_document(verdict, Shot(), f"r{number}", 0.0)


def keep(folder: Path, documents: list[dict[str, Any]], decisions: dict[int, str], **review: Any) -> None:
    """Record answers, then review those at some places of the list."""

    async def record() -> None:
        with closing(Recorder(str(folder), KeepSettings(good_share=0))) as recorder:
            numbers = [await recorder.record(document, document["uri"].encode()) for document in documents]
            await recorder.review(numbers[0], "warm-up", "unsure")  # on disk, and all before it
            for place, decision in decisions.items():
                await recorder.review(numbers[place], "ann", decision, **review)

    asyncio.run(record())


def test_a_review_stands_beside_the_verdict_and_changes_nothing(tmp_path: Path) -> None:
    async def review() -> None:
        with closing(Recorder(str(tmp_path))) as recorder:
            number = await recorder.record(scored(1, 3.0, 1.0, "b"), b"x")
            before = await recorder.event(number)
            said = await recorder.review(number, "ann", "good", "dust", "wiped it off")
            assert await recorder.event(number) == before
            document = (await recorder.event(said)).document
            expected = {"of": number, "who": "ann", "decision": "good", "reason": "dust", "comment": "wiped it off"}
            expected |= {"verdict": "defect", "surface": STEEL, "image_id": before.document["image_id"]}
            assert expected.items() <= document.items()
            for wrong in (("ann", "fine", None), ("ann", "good", "mood"), (" ", "good", None)):
                with pytest.raises(ServiceError) as caught:
                    await recorder.review(number, *wrong)
                assert caught.value.code == "bad-request"
            with pytest.raises(ServiceError, match="limit is 2000"):
                await recorder.review(number, "ann", "good", None, "x" * 2001)
            with pytest.raises(ServiceError, match="only verdicts"):
                await recorder.review(said, "ann", "good")
            with pytest.raises(ServiceError) as caught:
                await recorder.review(99, "ann", "good")
            assert caught.value.code == "unknown-event"
            # Another process reads while this one writes; the latest review counts.
            await recorder.review(number, "bob", "defect", "real defect")
            assert [event.document["who"] for event in stored_events(str(tmp_path), "review")] == ["ann", "bob"]
            (latest,) = reviews.latest_reviews(str(tmp_path))
            assert latest.document["who"] == "bob"

    asyncio.run(review())
    with pytest.raises(LakeError, match=r"journal\.sqlite"):
        stored_events(str(tmp_path / "none"), "review")


def test_reviewed_images_become_a_manifest_to_train_on(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    inspector, data = Inspector(trained.bundle), tmp_path / "data"
    steel = [row for row in judged(trained, inspector, STEEL) if row["verdict"].verdict in ("good", "defect")]
    chosen = steel[:6] + [row for row in judged(trained, inspector, UNSEEN) if row["verdict"].verdict == "unseen"][:2]

    async def serve() -> None:
        with closing(Recorder(str(data), KeepSettings(good_share=1))) as recorder:
            numbers = []
            for place, row in enumerate(chosen):
                shot = Shot(part_id=f"part{place // 2}", surface=UNSEEN if place == 6 else None)
                document = answer_document(row["verdict"], shot, "r", 0.0)
                numbers.append(await recorder.record(document, Path(row["uri"]).read_bytes()))
            bad = await recorder.record(_error(), b"no image")
            said = ["good", "defect", "good", "unsure", "good", "good", "good", "good"]
            for number, decision in zip(numbers, said, strict=True):
                await recorder.review(number, "ann", decision)
            await recorder.review(numbers[2], "bob", "defect", "real defect")
            await recorder.review(numbers[5], "bob", "good", "wrong surface")
            await recorder.review(bad, "ann", "good")
            lost = (await recorder.event(numbers[4])).document["image_id"]
        for path in (data / "images").glob(f"*/*/{lost}"):
            path.unlink()

    asyncio.run(serve())
    out = str(tmp_path / "manifest.parquet")
    assert main(["reviews", "export", "--data", str(data), "--out", out]) == 0
    said = capsys.readouterr().out
    for reason in ("1 unsure", "1 could not be judged", "2 surface not known", "1 image not kept", "4 images ->"):
        assert reason in said, reason
    table = lake.read_manifest(out).to_pylist()
    named = {hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest(): row for row in chosen}
    found = [(named[row["image_id"]]["uri"], row["surface"], row["label"], row["group"]) for row in table]
    assert found == [
        (chosen[0]["uri"], STEEL, "benign", "part0"),
        (chosen[1]["uri"], STEEL, "defect", "part0"),
        (chosen[6]["uri"], UNSEEN, "benign", "part3"),
        (chosen[2]["uri"], STEEL, "defect", "part1"),
    ]
    for row in table:
        assert Path(row["uri"]).parent == tmp_path / "images"
        assert Path(row["uri"]).read_bytes() == Path(named[row["image_id"]]["uri"]).read_bytes()
    assert {row["split"] for row in table} <= {"train", "val"}
    training_samples(lake.read_manifest(out), ())  # as `train` takes them


def judged(trained: Trained, inspector: Inspector, surface: str) -> list[dict[str, Any]]:
    """Some images of a surface with the verdicts on them that name it, or call it unseen."""
    found = []
    for row in [row for row in trained.manifest.to_pylist() if row["surface"] == surface][:12]:
        verdict = inspector.decide(load_job(Job(Path(row["uri"]).read_bytes()), trained.bundle.settings.image))
        if verdict.verdict == "unseen" or verdict.surface == surface:
            found.append(row | {"verdict": verdict})
    return found


def _error() -> dict[str, Any]:
    verdict = Verdict("e" * 64, "bad", "error", "b", error_code="unreadable", error_detail="no image")
    return answer_document(verdict, Shot(), "r", 0.0)


def test_an_export_of_nothing_says_why(tmp_path: Path) -> None:
    keep(tmp_path, [scored(1, 3.0, 1.0, "b")], {})
    with pytest.raises(DataError, match="1 unsure") as caught:
        reviews.export(str(tmp_path), str(tmp_path / "manifest.parquet"))
    assert caught.value.code == "too-few-images"
    assert not (tmp_path / "manifest.parquet").exists()


def service(bundle: Bundle, folder: Path, num_quiet: int, num_alarms: int, decisions: dict[int, str]) -> float:
    """A service that judged good-looking images and then alarms, some of which were reviewed; its threshold."""
    threshold = bundle.detectors[STEEL].threshold().value
    quiet = [threshold - 1 - number / 100 for number in range(num_quiet)]
    alarms = [threshold + 1 + number / 100 for number in range(num_alarms)]
    documents = [scored(number, score, threshold, bundle.digest) for number, score in enumerate(quiet + alarms)]
    keep(folder, documents, decisions)
    return threshold


def propose(trained: Trained, folder: Path, bundle: Bundle | None = None, **more: Any) -> recalibration.Proposal:
    found = recalibration.propose(bundle or trained.bundle, str(folder), str(folder / "log"), **more)
    (one,) = found.of_surfaces
    return one


def test_few_reviewed_false_alarms_of_many_images_hardly_move_a_threshold(trained: Trained, tmp_path: Path) -> None:
    decisions = dict.fromkeys([*range(20), *range(400, 404)], "good")
    threshold = service(trained.bundle, tmp_path, 400, 4, decisions)
    one = propose(trained, tmp_path)
    assert one.false_alarm_share == pytest.approx(4 / 404)
    assert one.taken_false_alarms <= 1  # of four that were reviewed beside twenty others
    assert (one.reviewed_good, one.reviewed_defect, one.logged) == (24, 0, 404)
    assert (one.effect_before.false_alarms, one.effect_before.rejects) == (4, 4)
    assert one.before.value == threshold


def test_where_many_good_images_alarm_the_threshold_rises_and_the_counts_say_what_for(
    trained: Trained, tmp_path: Path
) -> None:
    decisions = {**dict.fromkeys(range(30), "good"), **dict.fromkeys(range(100, 140), "good"), 149: "defect"}
    threshold = service(trained.bundle, tmp_path, 100, 50, decisions)
    one = propose(trained, tmp_path)
    good_alarms = 50 * 40 / 41
    assert one.false_alarm_share == pytest.approx(good_alarms / (100 + good_alarms))
    assert one.taken_false_alarms == min(one.wanted_false_alarms, 40) > 5
    assert one.after.value > threshold
    assert one.after.num_good == one.held_out_good + 30 + one.taken_false_alarms
    assert (one.effect_before.false_alarms, one.effect_before.misses) == (40, 0)
    assert one.effect_after.false_alarms < 5
    assert one.effect_after.rejects == sum(threshold + 1 + n / 100 > one.after.value for n in range(50))


def test_reviewed_misses_lower_a_threshold_that_is_to_miss_none(trained: Trained, tmp_path: Path) -> None:
    threshold = service(trained.bundle, tmp_path, 50, 3, {10: "defect", 50: "defect", 52: "good"})
    one = propose(trained, tmp_path, rule=ThresholdRule("zero-misses"))
    assert one.after.value < threshold - 1.1 < one.before.value
    assert (one.effect_before.misses, one.effect_after.misses) == (1, 0)
    assert one.effect_after.rejects > one.effect_before.rejects == 3


def test_an_approved_proposal_is_a_new_bundle_that_says_who_and_why(
    trained: Trained, tmp_path: Path, capsys: Any
) -> None:
    decisions = {**dict.fromkeys(range(30), "good"), **dict.fromkeys(range(100, 140), "good"), 149: "defect"}
    service(trained.bundle, tmp_path, 100, 50, decisions)
    words = ["reviews", "recalibrate", "--bundle", trained.bundle_url, "--data", str(tmp_path)]
    one = propose(trained, tmp_path)
    for name in ("proposal.json", "proposal.md"):
        assert main([*words, "--out", str(tmp_path / name)]) == 0
    written = json.loads((tmp_path / "proposal.json").read_text())
    assert written["surfaces"][0]["after"]["value"] == one.after.value
    assert written["caution"] == recalibration.CAUTION
    assert recalibration.CAUTION in (tmp_path / "proposal.md").read_text()
    assert bundles.load(trained.bundle_url).digest == trained.bundle.digest
    assert not list(tmp_path.glob("**/bundle.json"))

    to = str(tmp_path / "new")
    assert main([*words, "--approve", "Ann Lee", "--reason", "glare since May", "--to", to]) == 0
    assert "->" in capsys.readouterr().out
    new = bundles.load(to)
    assert new.detectors[STEEL].threshold().value == one.after.value
    (step,) = new.card["provenance"]["steps"]
    assert (step["step"], step["surface"], step["by"], step["reason"]) == (
        "recalibrate",
        STEEL,
        "Ann Lee",
        "glare since May",
    )
    assert step["parent"] == trained.bundle.digest
    assert step["after"]["data_digest"] == new.detectors[STEEL].threshold().data_digest
    for surface in SEEN[1:]:
        assert new.detectors[surface].threshold() == trained.bundle.detectors[surface].threshold()
    assert new.card["files"] == trained.bundle.card["files"]

    # The reviews are the same ones: to learn from them again changes nothing.
    again = propose(trained, tmp_path, new)
    assert again.held_out_good == one.held_out_good
    assert again.before == again.after == one.after
    assert again.effect_before == one.effect_after
    with pytest.raises(SbdzslError) as caught:
        recalibration.approve(trained.bundle, recalibration.Proposals((one,), Counter()), to, "ann", "why")
    assert caught.value.code == "bundle-exists"


def test_reviews_that_say_nothing_about_a_threshold_are_counted(trained: Trained, tmp_path: Path) -> None:
    digest = trained.bundle.digest
    documents = [scored(0, 9.0, 1.0, digest), scored(1, 9.0, 1.0, "other"), scored(2, 9.0, 1.0, digest, "felt")]
    keep(tmp_path, documents, {1: "good", 2: "good"})
    with pytest.raises(DataError, match="1 unsure") as caught:
        propose(trained, tmp_path)
    assert "1 judged by a bundle with another detector" in caught.value.message
    assert "1 of another surface" in caught.value.message
    with pytest.raises(SbdzslError, match="felt") as caught_other:
        propose(trained, tmp_path, surfaces=["felt"])
    assert caught_other.value.code == "bad-config"


def test_an_approval_needs_name_reason_and_place(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    words = ["reviews", "recalibrate", "--bundle", trained.bundle_url, "--data", str(tmp_path)]
    assert main([*words, "--approve", "ann"]) == 2
    assert main([*words, "--out", "proposal.txt"]) == 2
    assert "belong together" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
