"""How `sbdzsl train` hands a training to a cluster; what a cluster makes of it is in tests/cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sbdzsl import cli
from sbdzsl.cluster import jobs
from sbdzsl.config import ClusterSettings, DetectorSettings, TrainSettings, load

WORDS = ["train", "--manifest", "m.parquet", "--bundle", "s3://b/bundle", "--unseen", "cork"]


def test_a_job_gets_the_same_words_and_the_settings_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submitted: list[tuple[Any, ...]] = []

    def instead(command: list[str], address: str, name: str, *_: object, **__: object) -> int:
        submitted.append((command, address, name))
        return 3

    monkeypatch.setattr(jobs, "submit", instead)
    (tmp_path / "train.yaml").write_text("detector: {epochs: 7}\n")
    (tmp_path / "spread.yaml").write_text("workers: 3\n")
    words = [*WORDS, "--config", str(tmp_path / "train.yaml"), f"--cluster-config={tmp_path / 'spread.yaml'}"]
    assert cli.main([*words, "--submit", "http://head:8265"]) == 3
    command, address, name = submitted[0]
    assert address == "http://head:8265"
    assert name.startswith("sbdzsl-train-")
    assert command[:8] == ["python", "-m", "sbdzsl.cli", *WORDS[:5]]
    assert command[8:-4] == [*WORDS[5:], "--cluster"]
    given = dict(zip(command[-4::2], command[-3::2], strict=True))
    assert load(TrainSettings, given["--config"]) == TrainSettings(detector=DetectorSettings(epochs=7))
    assert load(ClusterSettings, given["--cluster-config"]) == ClusterSettings(workers=3)
    (tmp_path / "spread.yaml").write_text("workers: 4\n")
    assert cli.main([*words, "--submit", "http://head:8265"]) == 3
    assert submitted[1][2] != name, "another request has another name"


@pytest.mark.parametrize(
    "words",
    [["--allow-missing"], ["--address", "head:6379"], ["--cluster-config", "{}"], ["--cluster", "--device", "cuda"]],
)
def test_an_option_that_would_have_no_effect_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_settings_of_a_cluster_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--cluster", "--cluster-config", "{actors: 3}"]) == 2
    assert "actors" in capsys.readouterr().err
