import json
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import ray

from sbdzsl import lake
from sbdzsl.cluster import audit as audits
from sbdzsl.cluster import ledger
from sbdzsl.cluster.audit import AuditResult, run_audit
from sbdzsl.cluster.judge import InspectorLoader
from sbdzsl.cluster.plan import Plan
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.cluster.session import session
from sbdzsl.config import AuditSettings, ThresholdRule
from sbdzsl.errors import AuditError, ConfigError, DataError, LakeError, StoppedError
from sbdzsl.inspector import Inspector
from tests import hostile
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

#: One actor: to start it takes most of the time of a test.
SETTINGS = AuditSettings(shard_size=7, gallery_size=2, actors=1)
SCORES = ("verdict", "surface", "unseen_score", "surface_margin", "defect_score", "defect_probability", "error_code")


@pytest.fixture(scope="module")
def drawn(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of the drawn lake, a file that is no image, an empty one, and one that is not listed."""
    folder = tmp_path_factory.mktemp("audit") / "drawn"
    for row in trained.manifest.to_pylist()[::5][:30]:
        (folder / row["surface"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(row["uri"], folder / row["surface"] / f"{row['image_id'][:8]}.png")
    (folder / "text.png").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "readme.txt").write_text("not an image, not listed")
    return folder


@pytest.fixture
def archive(drawn: Path) -> Path:
    """Those files, whatever the test before did to them, under the one name that is in the plan of `audited`."""
    place = drawn.parent / "archive"
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(drawn, place))


@pytest.fixture
def audited(trained: Trained, archive: Path, tmp_path: Path) -> Path:
    """The archive's audit, ended and undisturbed: done once, and each test has a copy to its own."""
    once = archive.parent / "audited"
    if not once.exists():
        audit(trained, archive, once)
    return Path(shutil.copytree(once, tmp_path / "out"))


def audit(trained: Trained, archive: Path, out: Path, **changes: Any) -> tuple[AuditResult, list[str]]:
    lines: list[str] = []
    settings = {name: changes.pop(name) for name in list(changes) if name in AuditSettings.model_fields}
    arguments = {"lake_url": str(archive), "settings": SETTINGS.model_copy(update=settings)} | changes
    return run_audit(AuditRequest(trained.bundle_url, str(out), **arguments), report=lines.append), lines


def rows_below(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "parts" / "*.parquet").sort("uri")


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def times_of_parts(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}


def test_every_image_gets_exactly_one_row_and_the_inspectors_verdict(
    trained: Trained, archive: Path, tmp_path: Path
) -> None:
    result, _ = audit(trained, archive, tmp_path / "out")
    rows = rows_below(tmp_path / "out")
    assert sorted(rows["uri"]) == sorted(
        str(path) for path in archive.rglob("*") if path.suffix != ".txt" and path.is_file()
    )
    assert result.num_judged == 32
    errors = rows.filter(pl.col("verdict") == "error")
    assert dict(zip(errors["uri"].str.split("/").list.last(), errors["error_code"], strict=True)) == {
        "text.png": "unsupported-format",
        "empty.jpg": "empty",
    }
    inspector = Inspector(trained.bundle)
    for row in rows.to_dicts():
        alone = inspector.judge(row["image_id"], row["uri"]).to_row()
        assert {name: row[name] for name in SCORES} == {name: alone[name] for name in SCORES}
        assert row["modified_at"] is not None


def test_hostile_files_are_rows_with_the_right_code(trained: Trained, tmp_path: Path) -> None:
    expected = {name: code for name, _, code in hostile.draw(tmp_path / "hostile") if not name.endswith(".gif")}
    audit(trained, tmp_path / "hostile", tmp_path / "out")
    rows = rows_below(tmp_path / "out")
    assert sorted(Path(uri).name for uri in rows["uri"]) == sorted(expected)
    for row in rows.to_dicts():
        code = expected[Path(row["uri"]).name]
        assert row["error_code"] == (code if isinstance(code, str) else None), row["uri"]


def test_a_finished_audit_has_nothing_to_do(trained: Trained, archive: Path, audited: Path) -> None:
    before = times_of_parts(audited)
    (archive / "later.png").write_bytes(b"came after the audit was planned")
    result, _ = audit(trained, archive, audited)
    assert result.num_judged == 0
    assert times_of_parts(audited) == before


def test_only_lost_shards_are_judged_again(trained: Trained, archive: Path, audited: Path) -> None:
    whole = rows_below(audited)
    for lost in ("0001-000001.parquet", "0001-000003.parquet"):
        (audited / "parts" / lost).unlink()
    result, lines = audit(trained, archive, audited)
    assert result.num_judged == 14
    assert any("resuming: 3 of 5 shards" in line for line in lines)
    assert rows_below(audited).select("image_id", *SCORES).equals(whole.select("image_id", *SCORES))


def test_only_what_is_new_or_changed_is_judged(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", sorted(archive.glob("*/*.png"))
    audit(trained, archive, out, only_new=True)
    before = times_of_parts(out)
    shutil.copy(images[0], archive / "new.png")
    shutil.copy(images[1], images[2])  # another content and time under the same name
    result, lines = audit(trained, archive, out, only_new=True)
    assert result.num_judged == 2
    assert any("run 2: 2 images" in line for line in lines)
    rows = rows_below(out)
    assert rows.height == rows["image_id"].n_unique() == 34
    assert rows["uri"].n_unique() == 33
    assert {path: mtime for path, mtime in times_of_parts(out).items() if path in before} == before
    assert summary_of(out)["facts"]["num_rows"] == 34
    assert summary_of(out / "runs" / "0002")["facts"]["num_rows"] == 2
    again, lines = audit(trained, archive, out, only_new=True)
    assert again.num_judged == 0
    assert any("nothing new" in line for line in lines)


def test_an_unfinished_run_is_finished_before_a_new_one(trained: Trained, archive: Path, audited: Path) -> None:
    (audited / "parts" / "0001-000002.parquet").unlink()
    shutil.copy(next(archive.glob("*/*.png")), archive / "new.png")
    result, _ = audit(trained, archive, audited, only_new=True)
    assert result.num_judged == 7 + 1
    assert rows_below(audited)["image_id"].n_unique() == 33


def test_a_sample_grows_into_the_whole(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, lines = audit(trained, archive, out, sample=0.5)
    assert 8 <= first.num_judged <= 24
    assert any("a sample of 0.5 of them" in line for line in lines)
    with pytest.raises(AuditError, match="Repeat the first command"):
        audit(trained, archive, out)
    rest, _ = audit(trained, archive, out, only_new=True)
    assert first.num_judged + rest.num_judged == rows_below(out)["image_id"].n_unique() == 32


def test_globs_limit_and_order_choose_the_images(trained: Trained, archive: Path, tmp_path: Path) -> None:
    audit(trained, archive, tmp_path / "a", include=("**/*.png",), exclude=("cast_iron/**",))
    names = rows_below(tmp_path / "a")["uri"].to_list()
    assert names
    assert not [name for name in names if "cast_iron" in name or name.endswith(".jpg")]
    audit(trained, archive, tmp_path / "b", newest_first=True, limit=2)
    assert sorted(Path(uri).name for uri in rows_below(tmp_path / "b")["uri"]) == ["empty.jpg", "text.png"]


def test_the_report_tells_what_the_rows_say(audited: Path) -> None:
    rows, summary = rows_below(audited), summary_of(audited)
    assert summary["counts"] == {
        kind: rows.filter(pl.col("verdict") == kind).height for kind in ("good", "defect", "unseen", "error")
    }
    assert (summary["facts"]["exit_code"], summary["facts"]["stopped"]) == (0, None)
    assert "unsupported-format" in (audited / "report.html").read_text()
    assert (audited / "alerts.csv").exists()


def test_an_audit_of_something_else_is_refused(trained: Trained, archive: Path, audited: Path) -> None:
    with pytest.raises(AuditError, match="choose another --out"):
        audit(trained, archive / "brushed_steel", audited)


def test_an_audit_keeps_to_its_threshold_policies(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out, rules = tmp_path / "out", {"cast_iron": ThresholdRule.parse("fixed:5")}
    policy = ThresholdRule.parse("fixed:3.20")
    audit(trained, archive, out, policy=policy, surface_policies=rules)
    judged = rows_below(out).filter(pl.col("verdict").is_in(["good", "defect"]))
    iron, others = judged.filter(pl.col("surface") == "cast_iron"), judged.filter(pl.col("surface") != "cast_iron")
    assert (set(iron["defect_threshold"]), set(iron["threshold_policy"])) == ({5.0}, {"fixed:5"})
    assert (set(others["defect_threshold"]), set(others["threshold_policy"])) == ({3.2}, {"fixed:3.2"})
    assert summary_of(out)["facts"]["defect_budget"] is None
    again, _ = audit(trained, archive, out, policy=policy, surface_policies=rules)
    assert again.num_judged == 0
    with pytest.raises(AuditError, match=r"policy: fixed:3\.2 there, fixed:3\.3 asked for"):
        audit(trained, archive, out, policy=ThresholdRule.parse("fixed:3.3"), surface_policies=rules)
    with pytest.raises(AuditError, match="surface_policies"):
        audit(trained, archive, out, policy=policy)
    with pytest.raises(ConfigError, match="velvet"):
        audit(trained, archive, out, surface_policies={"velvet": policy})


def test_an_audit_keeps_to_its_promise(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(trained, archive, out, promise="envelope")
    router = trained.bundle.router.promising("envelope")
    assert router.threshold() != trained.bundle.router.threshold()
    assert set(rows_below(out)["unseen_threshold"].drop_nulls()) == {router.threshold()}
    assert summary_of(out)["facts"]["promise"] == "envelope"
    assert "changes within the envelope" in (out / "report.html").read_text()
    with pytest.raises(AuditError, match="promise: envelope there, plain asked for"):
        audit(trained, archive, out)


def test_a_manifest_or_a_folder_of_them_can_take_the_place_of_a_lake(trained: Trained, tmp_path: Path) -> None:
    lake.write_manifest(trained.manifest.slice(0, 9), str(tmp_path / "pages" / "short.parquet"))
    whole = str(tmp_path / "pages" / "short.parquet")
    audit(trained, tmp_path, tmp_path / "a", lake_url=None, manifest_uri=whole)
    assert sorted(rows_below(tmp_path / "a")["image_id"]) == sorted(trained.manifest["image_id"].to_pylist()[:9])
    lake.write_manifest(trained.manifest.slice(9, 4), str(tmp_path / "pages" / "more.parquet"))
    audit(trained, tmp_path, tmp_path / "b", lake_url=None, manifest_uri=str(tmp_path / "pages"))
    assert rows_below(tmp_path / "b").height == 13
    lake.write_manifest(trained.manifest.slice(8, 4), str(tmp_path / "pages" / "again.parquet"))
    with pytest.raises(DataError, match="stand in several rows"):
        audit(trained, tmp_path, tmp_path / "c", lake_url=None, manifest_uri=str(tmp_path / "pages"))


def test_too_many_errors_stop_it_with_a_report(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="2 of 32 images") as caught:
        audit(trained, archive, out, max_errors=0.05)
    assert caught.value.code == "too-many-errors"
    facts = summary_of(out)["facts"]
    assert (facts["stopped"], facts["exit_code"]) == ("too-many-errors", 3)
    assert "unsupported-format" in (out / "report.html").read_text()


def test_time_that_is_up_stops_it_and_the_same_command_goes_on(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="max_minutes"):
        audit(trained, archive, out, max_minutes=1e-6)
    facts = summary_of(out)["facts"]
    assert (facts["stopped"], facts["num_missing"], facts["num_judged"]) == ("out-of-time", 32, 0)
    result, _ = audit(trained, archive, out)
    assert result.num_judged == 32


class HangingLoader(InspectorLoader):
    """Its inspector never comes back from the image `text.png`."""

    def __call__(self, plan: Plan, device: str) -> Inspector:
        inspector = super().__call__(plan, device)
        decide = inspector.decide

        def hanging(loaded: Any) -> Any:
            if loaded.uri.endswith("text.png"):
                time.sleep(150)
            return decide(loaded)

        inspector.decide = hanging  # type: ignore[method-assign]
        return inspector


def test_a_shard_that_is_stuck_is_named(
    trained: Trained, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "InspectorLoader", HangingLoader)
    out = tmp_path / "out"
    with pytest.raises(
        AuditError, match=r"no shard was finished for 60 s; stuck: shard \d by process \d+ on"
    ) as caught:
        audit(trained, archive, out, stall_timeout_s=60)
    assert caught.value.code == "stalled"
    assert summary_of(out)["facts"]["stopped"] == "stalled"
    kept = rows_below(out).height if (out / "parts").exists() else 0
    assert kept < 32
    monkeypatch.undo()
    result, _ = audit(trained, archive, out)
    assert result.num_judged == 32 - kept, "what was finished is kept"


def test_rows_that_do_not_reconcile_are_said(trained: Trained, archive: Path, audited: Path) -> None:
    shutil.copy(audited / "parts" / "0001-000000.parquet", audited / "parts" / "copy.parquet")
    with pytest.raises(AuditError, match=r"copy\.parquet.* lie among the parts and are none"):
        audit(trained, archive, audited)
    assert summary_of(audited)["facts"]["exit_code"] == 1


def test_calls_that_cannot_work_say_so(trained: Trained, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --lake or --manifest"):
        audit(trained, archive, tmp_path / "a", manifest_uri="m.parquet")
    with pytest.raises(ConfigError, match="a manifest is a list"):
        audit(trained, archive, tmp_path / "a", lake_url=None, manifest_uri="m.parquet", include=("*.png",))
    with pytest.raises(LakeError):
        audit(trained, tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(AuditError, match="largest node offers") as caught:
        audit(trained, archive, tmp_path / "c", cpus_per_actor=64)
    assert caught.value.code == "no-resources"


def test_a_job_submission_address_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(AuditError, match="ray job submit"), session("http://127.0.0.1:8265"):
        pass


def test_starts_of_one_audit_are_counted_apart(trained: Trained, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result, _ = audit(trained, archive, out)
    (out / "parts" / "0001-000000.parquet").unlink()
    audit(trained, archive, out)
    attempts = ledger.attempts(result.plans[0])
    assert [one.shard for one in attempts].count(0) == 2
    assert len({one.session for one in attempts}) == 2
