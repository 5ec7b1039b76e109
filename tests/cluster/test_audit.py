import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import ray

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster.audit import ShardJudge, run_audit
from sbdzsl.cluster.session import require_placeable, session
from sbdzsl.config import AuditSettings, ThresholdRule
from sbdzsl.errors import AuditError, ConfigError, LakeError
from sbdzsl.inspector import Inspector
from tests import hostile
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SETTINGS = AuditSettings(shard_size=7, gallery_size=2)
SCORES = ("verdict", "surface", "unseen_score", "surface_margin", "defect_score", "defect_probability", "error_code")


@pytest.fixture
def archive(trained: Trained, tmp_path: Path) -> Path:
    """Thirty images of the drawn lake, a file that is no image, an empty one, and one that is not listed."""
    folder = tmp_path / "archive"
    for row in trained.manifest.to_pylist()[::5][:30]:
        (folder / row["surface"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(row["uri"], folder / row["surface"] / f"{row['image_id'][:8]}.png")
    (folder / "text.png").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "readme.txt").write_text("not an image, not listed")
    return folder


def audit(trained: Trained, archive: Path, out: Path, **changes: object) -> tuple[object, list[str]]:
    lines: list[str] = []
    arguments = {"lake_url": str(archive), "settings": SETTINGS} | changes
    return run_audit(trained.bundle_url, str(out), report=lines.append, **arguments), lines  # type: ignore[arg-type]


def rows_below(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "parts" / "*.parquet").sort("uri")


def test_every_image_gets_exactly_one_row_and_the_inspectors_verdict(
    trained: Trained, archive: Path, tmp_path: Path
) -> None:
    result, _ = audit(trained, archive, tmp_path / "out")
    rows = rows_below(tmp_path / "out")
    assert sorted(rows["uri"]) == sorted(
        str(path) for path in archive.rglob("*") if path.suffix != ".txt" and path.is_file()
    )
    assert result.num_judged == 32  # type: ignore[attr-defined]
    errors = rows.filter(pl.col("verdict") == "error")
    assert dict(zip(errors["uri"].str.split("/").list.last(), errors["error_code"], strict=True)) == {
        "text.png": "unsupported-format",
        "empty.jpg": "empty",
    }
    inspector = Inspector(trained.bundle)
    for row in rows.to_dicts():
        alone = inspector.judge(row["image_id"], row["uri"]).to_row()
        assert {name: row[name] for name in SCORES} == {name: alone[name] for name in SCORES}


def test_hostile_files_are_rows_with_the_right_code(trained: Trained, tmp_path: Path) -> None:
    expected = {name: code for name, _, code in hostile.draw(tmp_path / "hostile") if not name.endswith(".gif")}
    audit(trained, tmp_path / "hostile", tmp_path / "out")
    rows = rows_below(tmp_path / "out")
    assert sorted(Path(uri).name for uri in rows["uri"]) == sorted(expected)
    for row in rows.to_dicts():
        code = expected[Path(row["uri"]).name]
        assert row["error_code"] == (code if isinstance(code, str) else None), row["uri"]


def test_a_finished_audit_has_nothing_to_do(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    (archive / "later.png").write_bytes(b"came after the audit was planned")
    result, _ = audit(trained, archive, out)
    assert result.num_judged == 0  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == before


def test_only_lost_shards_are_judged_again(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out)
    whole = rows_below(out)
    for lost in ("part-000001.parquet", "part-000003.parquet"):
        (out / "parts" / lost).unlink()
    result, lines = audit(trained, archive, out)
    assert result.num_judged == 14  # type: ignore[attr-defined]
    assert any("resuming: 3 of 5 shards" in line for line in lines)
    assert rows_below(out).select("image_id", *SCORES).equals(whole.select("image_id", *SCORES))


def test_the_report_tells_what_the_rows_say(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out)
    rows, summary = rows_below(out), json.loads((out / "summary.json").read_text())
    assert summary["counts"] == {
        kind: rows.filter(pl.col("verdict") == kind).height for kind in ("good", "defect", "unseen", "error")
    }
    html = (out / "report.html").read_text()
    assert "unsupported-format" in html
    assert (out / "alerts.csv").exists()


def test_an_audit_of_something_else_is_refused(trained: Trained, archive: Path, tmp_path: Path) -> None:
    audit(trained, archive, tmp_path / "out")
    with pytest.raises(AuditError, match="choose another --out"):
        audit(trained, archive / "brushed_steel", tmp_path / "out")


def test_an_audit_keeps_to_its_threshold_policy(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out, policy=ThresholdRule.parse("fixed:3.20"))
    assert json.loads((out / "audit.json").read_text())["policy"] == "fixed:3.2"
    judged = rows_below(out).filter(pl.col("verdict").is_in(["good", "defect"]))
    assert set(judged["threshold_policy"]) == {"fixed:3.2"}
    assert set(judged["defect_threshold"]) == {3.2}
    assert json.loads((out / "summary.json").read_text())["facts"]["defect_budget"] is None
    again, _ = audit(trained, archive, out, policy=ThresholdRule.parse("fixed:3.2"))
    assert again.num_judged == 0  # type: ignore[attr-defined]
    with pytest.raises(AuditError, match=r"policy: fixed:3\.2 there, fixed:3\.3 asked for"):
        audit(trained, archive, out, policy=ThresholdRule.parse("fixed:3.3"))


def test_an_audit_keeps_to_its_promise(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out, promise="envelope")
    router = trained.bundle.router.promising("envelope")
    assert router.threshold() != trained.bundle.router.threshold()
    assert set(rows_below(out)["unseen_threshold"].drop_nulls()) == {router.threshold()}
    assert json.loads((out / "summary.json").read_text())["facts"]["promise"] == "envelope"
    assert "changes within the envelope" in (out / "report.html").read_text()
    with pytest.raises(AuditError, match="promise: envelope there, plain asked for"):
        audit(trained, archive, out)


def test_a_manifest_can_take_the_place_of_a_lake(trained: Trained, tmp_path: Path) -> None:
    short = str(tmp_path / "short.parquet")
    lake.write_manifest(trained.manifest.slice(0, 9), short)
    audit(trained, tmp_path, tmp_path / "out", lake_url=None, manifest_uri=short)
    assert sorted(rows_below(tmp_path / "out")["image_id"]) == sorted(trained.manifest["image_id"].to_pylist()[:9])


def test_calls_that_cannot_work_say_so(trained: Trained, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --lake or --manifest"):
        audit(trained, archive, tmp_path / "a", manifest_uri="m.parquet")
    with pytest.raises(LakeError):
        audit(trained, tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(AuditError, match="largest node offers") as caught:
        audit(trained, archive, tmp_path / "c", settings=AuditSettings(cpus_per_actor=64))
    assert caught.value.code == "no-resources"


def test_placement_is_checked_per_node() -> None:
    require_placeable({"CPU": 2}, "this")
    with pytest.raises(AuditError):
        require_placeable({"GPU": 1}, "that")


def test_a_job_submission_address_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(AuditError, match="ray job submit"), session("http://127.0.0.1:8265"):
        pass


def test_a_shard_that_somebody_else_finished_is_left_alone(trained: Trained, archive: Path, tmp_path: Path) -> None:
    manifest = lake.list_images(str(archive))
    plan = ledger.make_plan(str(tmp_path / "out"), str(archive), "b", None, manifest, 40, "2026-11-23")
    lake.write_bytes(plan.part_uri(0), b"theirs")
    judge = ShardJudge(plan, lambda: Inspector(trained.bundle), readers=2, threads=1)
    assert judge({"shard": [0]})["num_images"].tolist() == [32]  # type: ignore[dict-item]
    assert lake.read_bytes(plan.part_uri(0)) == b"theirs"
