"""The steps of a run: each once, whatever kills it; promoted once; refused with the report that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sbdzsl import bundle as bundles
from sbdzsl import evaluation, lake
from sbdzsl.config import TrainSettings
from sbdzsl.errors import BundleError, ConfigError, DataError, PipelineError, StoppedError
from sbdzsl.pipeline import PipelineSettings
from sbdzsl.pipeline.steps import Outcome
from tests.conftest import SMALL, UNSEEN
from tests.pipeline.conftest import Lab

STEPS = {"train", "evaluate", "gate", "promote", "report"}


def test_from_manifest_to_a_bundle_in_force(lab: Lab, page: Callable[[Outcome], str]) -> None:
    outcome = lab.run()
    outcome.check()
    assert lab.steps_done() == STEPS
    assert outcome.digest == lab.trained.bundle.digest
    (record,) = lab.registry.history("production")
    assert record == outcome.record
    assert (record.bundle, record.by, record.forced) == (outcome.digest, "anna", False)
    assert record.gate is not None
    figures = evaluation.evaluate(lab.trained.bundle, lake.read_manifest(lab.tested)).figures
    assert outcome.figures == json.loads(json.dumps(figures))
    rows = {row["figure"]: row["candidate"] for row in record.gate["rows"]}
    assert rows["mean_ap"] == pytest.approx(figures["mean"]["ap"])
    assert (rows["s"], rows["u"], rows["h"]) == (figures["s"], figures["u"], figures["h"])
    assert lab.registry.verify() == ()
    assert "It passed the gate and was promoted: production, record 1." in page(outcome)

    before = page(outcome)
    assert lab.run() == outcome
    assert lab.steps_done() == set()
    assert {line.split(":")[0] for line in lab.lines if "done already" in line} == STEPS - {"gate"}
    assert page(outcome) == before
    assert lab.num_trainings == 1
    assert len(lab.registry.history("production")) == 1


def test_without_a_registry_it_ends_with_the_report(lab: Lab, page: Callable[[Outcome], str]) -> None:
    outcome = lab.run(lab.settings(promote=False))
    outcome.check()
    assert (outcome.gate, outcome.record) == (None, None)
    assert "No registry was named" in page(outcome)
    promoted = lab.run()
    assert lab.steps_done() == {"gate", "promote", "report"}, "a registry may be named later"
    assert promoted.record is not None
    assert "production, record 1" in page(promoted)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_the_end_of_each_step_it_ends_in_the_same_promoted_once(
    lab: Lab, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start dies at one more write of a record than the one before, right before it or right after it."""
    undisturbed = lab.run(lab.settings("undisturbed", promote=False))
    write, fuse = lake.write_once, [0]

    def dies(uri: str, data: bytes) -> bool:
        if not any(place in uri for place in ("/steps/", "/aliases/", "/run.json")):
            return write(uri, data)
        fuse[0] -= 1
        if fuse[0] < 0 and moment == "before":
            raise KeyboardInterrupt
        written = write(uri, data)
        if fuse[0] < 0:
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr(lake, "write_once", dies)
    deaths = 0
    while True:
        # Right after a record each start writes one; right before one it writes the one that the last did not.
        fuse[0] = 0 if moment == "after" else min(deaths, 1)
        try:
            outcome = lab.run()
            break
        except KeyboardInterrupt:
            deaths += 1
    monkeypatch.undo()
    assert deaths == len(STEPS) + 2, "the run's own file and the record of the alias are the others"
    (record,) = lab.registry.history("production")
    assert outcome.record == record
    assert (outcome.digest, outcome.figures) == (undisturbed.digest, undisturbed.figures)
    lab.run()
    assert lab.steps_done() == set()


def test_the_gate_refuses_and_the_report_says_why(lab: Lab, worse: str, page: Callable[[Outcome], str]) -> None:
    champion = lab.run().digest
    outcome = lab.run(lab.settings("second"), worse)
    with pytest.raises(StoppedError, match=r"mean_ap is worse by 0\.\d+") as caught:
        outcome.check()
    assert (caught.value.code, caught.value.exit_code) == ("gate-refused", 3)
    assert lab.registry.resolve("production").digest == champion
    assert [version.digest for version in lab.registry.versions()] == [champion], "what is refused is not pushed"
    assert "Refused by the gate" in page(outcome)
    assert "The gate refused it: mean_ap is worse by" in page(outcome)

    again = lab.run(lab.settings("second"), worse)
    assert lab.steps_done() == set()
    assert again.gate == outcome.gate
    lenient = lab.run(lab.settings("second", promotion={"registry": lab.registry.url, "margin": 0.99}), worse)
    assert lab.steps_done() == {"gate", "promote", "report"}, "nothing is trained or evaluated for another margin"
    assert lenient.record is not None
    assert lenient.record.replaces == champion
    assert "It passed the gate and was promoted: production, record 2." in page(lenient)


def test_what_was_measured_against_one_says_nothing_about_the_next(lab: Lab, worse: str, equal: str) -> None:
    lab.run()
    refused = lab.run(lab.settings("second"), worse)
    assert refused.record is None
    lab.registry.promote(lab.registry.push(worse), "production", "emil", "by hand", forced=True)
    lab.registry.promote(lab.registry.push(equal), "production", "emil", "by hand", forced=True)
    again = lab.run(lab.settings("second"), worse)
    assert lab.steps_done() == {"gate", "report"}
    assert again.gate is not None
    assert refused.gate is not None
    assert again.gate.champion != refused.gate.champion


def test_a_promotion_stands_once_where_the_alias_has_moved_on(lab: Lab, equal: str) -> None:
    lab.run()
    second = lab.run(lab.settings("second"), equal)
    assert second.record is not None
    lab.registry.rollback("production", "emil", "false alarms")
    again = lab.run(lab.settings("second"), equal)
    assert again.record == second.record
    assert len(lab.registry.history("production")) == 3


def test_who_is_in_force_already_is_not_compared_with_itself(lab: Lab, page: Callable[[Outcome], str]) -> None:
    first = lab.run()
    second = lab.run(lab.settings("second"))
    assert (second.gate, second.record) == (None, first.record)
    second.check()
    assert "production pointed to this very bundle already, by record 1" in page(second)


def test_other_data_or_settings_are_refused(lab: Lab, tmp_path: Path) -> None:
    lab.run(lab.settings(promote=False))
    rows = lab.trained.manifest.slice(1)
    lake.write_manifest(rows, str(tmp_path / "less.parquet"))
    changed = lab.settings(train={"detector": {"epochs": 9}}, manifests=[str(tmp_path / "less.parquet")], seed=1)
    with pytest.raises(PipelineError) as caught:
        lab.run(changed)
    assert caught.value.code == "other-run"
    for line in ("train.detector.epochs: 4 then, 9 now", "seed: 0 then, 1 now", "manifest: "):
        assert line in caught.value.message
    spread = lab.settings(promote=False, cluster={"workers": 3})
    lab.run(spread)
    assert lab.steps_done() == set(), "how it is spread changes nothing"


def test_a_test_image_that_was_trained_on_is_refused(lab: Lab, tmp_path: Path) -> None:
    def written(name: str, split: str) -> str:
        rows = [row | {"split": "test"} for row in lab.trained.manifest.to_pylist() if row["split"] == split]
        lake.write_manifest(pa.Table.from_pylist(rows, schema=lab.trained.manifest.schema), str(tmp_path / name))
        return str(tmp_path / name)

    with pytest.raises(DataError, match="test images of the evaluation are train or val images"):
        lab.run(lab.settings(evaluation={"manifests": [written("val.parquet", "val")]}))
    assert not (tmp_path / "run").exists(), "before anything is written"
    apart = lab.settings(evaluation={"manifests": [written("test.parquet", "test")]}, promote=False)
    splits = lab.trained.manifest["split"].to_pylist()
    assert lab.run(apart).figures["num_images"] == splits.count("test")


def test_a_bundle_of_somebody_else_is_not_taken(lab: Lab, equal: str) -> None:
    settings = lab.settings(promote=False)
    other = lab.settings("other", promote=False, unseen=[])
    bundles.copy(lab.trained.bundle_url, str(lab.folder / "other" / "bundle"))
    with pytest.raises(BundleError, match="holds a bundle that this run has not trained") as caught:
        lab.run(other)
    assert caught.value.code == "bundle-exists"
    lab.run(settings)
    shutil.rmtree(lab.folder / "run" / "bundle")
    bundles.copy(equal, str(lab.folder / "run" / "bundle"))
    with pytest.raises(PipelineError, match="put that one back") as damaged:
        lab.run(settings)
    assert damaged.value.code == "damaged-run"
    shutil.rmtree(lab.folder / "run" / "bundle")
    lab.run(settings)
    assert lab.num_trainings == 2, "what is gone is trained again"


@pytest.mark.parametrize("changes", [{"manifests": []}, {"out": None}])
def test_without_data_or_a_folder_there_is_no_run(lab: Lab, changes: dict[str, Any]) -> None:
    values = lab.settings().model_dump() | changes
    with pytest.raises(ConfigError, match="needs the manifests"):
        lab.run(PipelineSettings.model_validate(values))


def test_the_report_is_written_again_where_it_is_gone(lab: Lab) -> None:
    outcome = lab.run(lab.settings(promote=False))
    Path(outcome.report_url).unlink()
    lab.run(lab.settings(promote=False))
    assert UNSEEN in Path(outcome.report_url).read_text()


def test_a_sweep_comes_first_and_its_recipe_is_trained_by(lab: Lab, page: Callable[[Outcome], str]) -> None:
    """The sweep itself is in tests/cluster: here it finds the settings that the bundle was trained by."""
    swept: list[str] = []
    base = SMALL.model_copy(update={"detector": SMALL.detector.model_copy(update={"epochs": 9})})

    def tune(manifest: pa.Table, out: str, given: TrainSettings) -> TrainSettings:
        assert given == base
        swept.append(out)
        return SMALL

    def asked(**sweep: Any) -> PipelineSettings:
        return lab.settings(promote=False, train=base.model_dump(), tune={"trials": 3, **sweep})

    outcome = lab.run(asked(), tune=tune)
    assert lab.steps_done() == {"tune", "train", "evaluate", "report"}
    assert outcome.digest == lab.trained.bundle.digest
    assert swept == [str(lab.folder / "run" / "tune")]
    assert f"<code>{swept[0]}</code>" in page(outcome)
    assert lab.run(asked(concurrent=2), tune=tune) == outcome
    assert lab.steps_done() == set(), "how it is run changes nothing"
    with pytest.raises(PipelineError, match=r"tune\.trials: 3 then, 4 now"):
        lab.run(asked(trials=4), tune=tune)
    with pytest.raises(ConfigError, match="a sweep runs on a cluster"):
        lab.run(asked())
    assert len(swept) == 1
