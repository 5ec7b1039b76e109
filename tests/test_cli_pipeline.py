"""How `sbdzsl pipeline` reads its settings and hands a run to a cluster; the steps are in tests/pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sbdzsl import cli
from sbdzsl.cluster import jobs, pipeline
from sbdzsl.config import DetectorSettings, TrainSettings, load
from sbdzsl.errors import StoppedError
from sbdzsl.pipeline import PipelineSettings

WORDS = ["pipeline", "--manifest", "m.parquet", "--out", "s3://b/run", "--registry", "s3://b/registry"]


def test_a_job_gets_the_same_words_the_settings_and_who_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submitted: list[tuple[Any, ...]] = []

    def instead(command: list[str], address: str, name: str, *_: object, **__: object) -> int:
        submitted.append((command, address, name))
        return 3

    monkeypatch.setattr(jobs, "submit", instead)
    monkeypatch.setenv("LOGNAME", "carla")
    (tmp_path / "pipeline.yaml").write_text("train: {detector: {epochs: 7}}\n")
    words = [*WORDS, "--config", str(tmp_path / "pipeline.yaml"), "--submit", "http://head:8265"]
    assert cli.main(words) == 3
    command, address, name = submitted[0]
    assert (address, name.rpartition("-")[0]) == ("http://head:8265", "sbdzsl-pipeline")
    assert command[: 3 + len(WORDS)] == ["python", "-m", "sbdzsl.cli", *WORDS]
    assert command[3 + len(WORDS)] == "--cluster"
    given = dict(zip(command[4 + len(WORDS) :: 2], command[5 + len(WORDS) :: 2], strict=True))
    expected = PipelineSettings(train=TrainSettings(detector=DetectorSettings(epochs=7)))
    assert load(PipelineSettings, given["--config"]) == expected
    assert given["--by"] == "carla"


def test_options_are_laid_over_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def instead(*given: Any) -> None:
        asked.append(given)
        raise StoppedError("gate-refused", "worse")

    monkeypatch.setattr(pipeline, "run_on_cluster", instead)
    (tmp_path / "pipeline.yaml").write_text(
        "{manifests: [old.parquet], out: old, unseen: [cork], promotion: {alias: line7, margin: 0.05}}"
    )
    words = [*WORDS, "--evaluate-on", "t.parquet", "--margin", "0.02", "--by", "anna", "--reason", "weekly"]
    assert cli.main([*words, "--config", str(tmp_path / "pipeline.yaml"), "--cluster", "--address", "head:6379"]) == 3
    settings, by, reason, address, _ = asked[0]
    assert (settings.manifests, settings.out, settings.unseen) == (("m.parquet",), "s3://b/run", ("cork",))
    assert settings.evaluation.manifests == ("t.parquet",)
    assert settings.promotion.model_dump() == {"registry": "s3://b/registry", "alias": "line7", "margin": 0.02}
    assert (by, reason, address) == ("anna", "weekly", "head:6379")


@pytest.mark.parametrize("words", [["--address", "head:6379"], ["--cluster", "--device", "cuda"]])
def test_an_option_that_would_have_no_effect_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, *words]) == 2
    assert words[-2] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pipeline", "--out", "o"], "needs the manifests"),
        ([*WORDS, "--config", "{tran: {}}"], "tran"),
        ([*WORDS, "--margin", "1"], "promotion.margin"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_sweep_and_training_are_of_the_runs_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    settings = load(PipelineSettings, "{unseen: [cork], seed: 5, tune: {trials: 3}, cluster: {workers: 2}}")
    base, found = TrainSettings(), TrainSettings(detector=DetectorSettings(epochs=7))

    def instead(name: str, result: Any) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            asked[name] = given, named
            return result

        return called

    monkeypatch.setattr(pipeline, "tune_on_cluster", instead("tune", SimpleNamespace(recipe=found)))
    monkeypatch.setattr(pipeline, "train_on_cluster", instead("train", "bundle"))
    monkeypatch.setattr(pipeline, "run", instead("run", "outcome"))
    assert pipeline.run_on_cluster(settings, "anna", "weekly", "head:6379", print) == "outcome"
    (_, train, *who), named = asked["run"]
    assert who == ["anna", "weekly"]
    assert named["tune"]("manifest", "out/tune", base) == found
    assert asked["tune"] == (
        ("manifest", "out/tune", base, settings.tune, 5, ("cork",)),
        {"address": "head:6379", "report": print},
    )
    assert train("manifest", "out/bundle", found) == "bundle"
    (given, options) = asked["train"]
    assert given == ("manifest", "out/bundle", found, settings.cluster)
    assert options["seed"] == 5
    assert options["unseen"] == ("cork",)
    assert options["address"] == "head:6379"
    assert options["allow_missing"] is False
