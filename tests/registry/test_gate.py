"""The gate: an equal bundle passes, a worse one is refused, and what was measured stands in the record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl import enrolment, lake
from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import samples_from_table
from sbdzsl.errors import DataError, SbdzslError, StoppedError
from sbdzsl.registry import Registry, gate
from sbdzsl.sbdd.predict import Detector
from tests.conftest import SEEN, UNSEEN, Trained

HURT = SEEN[0]


def saved(bundle: Bundle, out: Path, note: str) -> str:
    """The same bundle under another digest."""
    b, provenance = bundle, {**bundle.card["provenance"], "note": note}
    bundles.save(str(out), b.settings, b.backbone, b.router, b.detectors, b.references, provenance)
    return str(out)


@pytest.fixture(scope="module")
def equal(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(trained.bundle, tmp_path_factory.mktemp("equal") / "bundle", "trained again")


@pytest.fixture(scope="module")
def worse(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One detector has lost its weights."""
    entry = trained.bundle.detectors[HURT]
    blank = {name: tensor * 0 for name, tensor in entry.detector.tensors().items()}
    detectors = {
        **trained.bundle.detectors,
        HURT: replace(entry, detector=Detector.from_tensors(entry.settings, blank)),
    }
    out = tmp_path_factory.mktemp("worse") / "bundle"
    return saved(replace(trained.bundle, detectors=detectors), out, "hurt")


@pytest.fixture
def champion(local: Registry, trained: Trained) -> str:
    digest = local.push(trained.bundle_url)
    local.promote(digest, "production", "anna", "the first")
    return digest


def promote(registry: Registry, url: str, trained: Trained, **kwargs: object) -> gate.Record:
    digest = registry.push(url)
    options: dict[str, object] = {"manifests": [trained.manifest_uri], **kwargs}
    return gate.promote(registry, digest, "production", "berta", str(options.pop("reason", "")), **options)  # type: ignore[arg-type]


def test_an_equal_bundle_passes_and_the_record_says_on_what(
    local: Registry, trained: Trained, champion: str, equal: str
) -> None:
    shown: list[gate.Gate] = []
    record = promote(local, equal, trained, margin=0, show=shown.append)
    assert (record.number, record.replaces, record.forced, record.by) == (2, champion, False, "berta")
    stored = local.history("production")[-1].gate
    assert stored is not None
    assert stored["manifest_digest"] == trained.bundle.card["provenance"]["data_digest"]
    assert stored["manifests"] == [trained.manifest_uri]
    assert (stored["champion"], stored["candidate"]) == (champion, record.bundle)
    assert (stored["reasons"], stored["margin"]) == ([], 0)
    rows = {row["figure"]: row for row in stored["rows"]}
    assert list(rows) == list(gate.FIGURES)
    assert all(row["champion"] == row["candidate"] is not None and row["fall"] == 0 for row in rows.values())
    assert stored["num_images"] == sum(split == "test" for split in trained.manifest["split"].to_pylist())
    assert set(stored["surface_ap"]) == set(SEEN)
    assert [row.figure for row in shown[0].rows] == list(gate.FIGURES)


def test_a_worse_bundle_is_refused_and_may_be_forced_on_record(
    local: Registry, trained: Trained, champion: str, worse: str
) -> None:
    shown: list[gate.Gate] = []
    with pytest.raises(StoppedError, match=r"mean_ap is worse by 0\.\d+.*--force with a --reason") as caught:
        promote(local, worse, trained, show=shown.append)
    assert (caught.value.code, caught.value.exit_code) == ("gate-refused", 3)
    assert local.resolve("production").digest == champion
    falls = {row.figure: row.fall for row in shown[0].rows if row.refused}
    assert "mean_ap" in falls
    assert not falls.keys() & {"s", "u", "h", "error_rate"}, "the router is the same"
    drop = [old - new for old, new in shown[0].surface_ap.values() if old is not None and new is not None]
    assert falls["mean_ap"] == pytest.approx(sum(drop) / len(SEEN))
    candidate, current = bundles.load(worse), trained.bundle
    assert gate.compare(candidate, current, [trained.manifest_uri], margin=max(falls.values()) + 1e-6).reasons == ()
    assert len(gate.compare(candidate, current, [trained.manifest_uri], margin=max(falls.values()) - 1e-6).reasons) == 1
    with pytest.raises(SbdzslError, match="--reason"):
        promote(local, worse, trained, force=True)
    record = promote(local, worse, trained, force=True, reason="line 7 has no felt any more")
    assert record.forced
    assert record.gate is not None
    assert record.gate["reasons"]
    assert local.rollback("production", "anna", "worse, as was seen").bundle == champion


def test_the_figures_are_those_of_the_bundles_themselves(trained: Trained, worse: str) -> None:
    found = gate.compare(bundles.load(worse), trained.bundle, [trained.manifest_uri])
    figures = gate.evaluate(trained.bundle, trained.manifest).figures
    rows = {row.figure: row for row in found.rows}
    assert rows["mean_ap"].champion == pytest.approx(figures["mean"]["ap"])
    assert (rows["s"].champion, rows["u"].champion, rows["h"].champion) == (figures["s"], figures["u"], figures["h"])
    surfaces = [figures["surfaces"][surface] for surface in SEEN]
    expected = sum(row["fn"] for row in surfaces) / sum(row["num_defect"] for row in surfaces)
    assert rows["miss_rate"].champion == pytest.approx(expected)


def test_a_lost_surface_is_refused_and_one_more_is_not(trained: Trained, tmp_path: Path) -> None:
    fewer = enrolment.retire(trained.bundle, HURT, str(tmp_path / "fewer"))
    found = gate.compare(fewer, trained.bundle, [trained.manifest_uri], margin=0.99)
    assert found.lost_surfaces == (HURT,)
    assert found.reasons == (f"surface {HURT!r} is not known any more",)
    back = gate.compare(trained.bundle, fewer, [trained.manifest_uri])
    assert back.lost_surfaces == ()
    rows = {row.figure: row for row in back.rows}
    assert rows["mean_ap"].champion == rows["mean_ap"].candidate, "over the surfaces that both know"
    assert set(back.surface_ap) == set(SEEN) - {HURT}


def test_a_figure_that_one_has_not_is_not_compared(trained: Trained, tmp_path: Path) -> None:
    """To a bundle that has learnt the only unseen surface, nothing in the manifest is unseen."""
    samples = [replace(s, split=None) for s in samples_from_table(trained.manifest) if s.surface == UNSEEN]
    more = enrolment.enrol(trained.bundle, UNSEEN, samples[:8], str(tmp_path / "more"), report=lambda _: None).bundle
    rows = {row.figure: row for row in gate.compare(more, trained.bundle, [trained.manifest_uri]).rows}
    assert rows["u"].champion is not None
    assert (rows["u"].candidate, rows["u"].fall, rows["u"].refused) == (None, None, False)


def test_the_first_one_has_nothing_to_be_compared_with(local: Registry, trained: Trained) -> None:
    record = promote(local, trained.bundle_url, trained)
    assert record.gate is not None
    assert record.gate["champion"] is None
    assert all(row["candidate"] is not None and row["fall"] is None for row in record.gate["rows"])


def test_without_a_manifest_only_a_candidate_or_by_force(
    local: Registry, trained: Trained, champion: str, equal: str
) -> None:
    with pytest.raises(SbdzslError, match="alias production is gated"):
        promote(local, equal, trained, manifests=[])
    digest = local.push(equal)
    assert gate.promote(local, digest, "candidate", "berta", "").gate is None
    assert promote(local, equal, trained, manifests=[], force=True, reason="night shift").forced


def test_who_is_in_force_is_not_measured_again(local: Registry, trained: Trained, champion: str) -> None:
    assert promote(local, trained.bundle_url, trained, manifests=["nowhere"]).number == 1


def test_an_alias_that_moves_meanwhile(
    local: Registry, trained: Trained, champion: str, equal: str, worse: str
) -> None:
    """What was measured against one champion says nothing about the next."""
    other = local.push(equal)

    def interfere(_: gate.Gate) -> None:
        local.promote(other, "production", "emil", "at the same time")

    with pytest.raises(SbdzslError, match="emil pointed it to") as caught:
        promote(local, worse, trained, force=True, reason="x", show=interfere)
    assert caught.value.code == "promoted-meanwhile"
    assert local.resolve("production").digest == other


def test_manifests_that_show_nothing(trained: Trained, tmp_path: Path) -> None:
    rows = [row["split"] == "test" for row in trained.manifest.to_pylist()]
    lake.write_manifest(trained.manifest.filter([not row for row in rows]), str(tmp_path / "train.parquet"))
    with pytest.raises(DataError, match="no row with split 'test'"):
        gate.compare(trained.bundle, trained.bundle, [str(tmp_path / "train.parquet")])
