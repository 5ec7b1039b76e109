"""How `sbdzsl tune` reads what is searched, and hands it to a cluster; what that makes of it is in tests/cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sbdzsl import cli
from sbdzsl.cluster import jobs
from sbdzsl.config import RouterSettings, TrainSettings, load
from sbdzsl.tuning import Parameter, SweepSettings

WORDS = ["tune", "--manifest", "m.parquet", "--out", "runs/s", "--unseen", "cork"]


def test_a_job_gets_the_same_words_and_the_settings_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submitted: list[tuple[Any, ...]] = []

    def instead(command: list[str], address: str, name: str, *_: object, **__: object) -> int:
        submitted.append((command, address, name))
        return 3

    monkeypatch.setattr(jobs, "submit", instead)
    (tmp_path / "sweep.yaml").write_text("trials: 9\nspace: {router.hidden: {choices: [32, 64]}}\n")
    words = [*WORDS, "--search", str(tmp_path / "sweep.yaml"), "--config={router: {score: paper}}", "--trials", "7"]
    assert cli.main([*words, "--study", "mine", "--submit", "http://head:8265"]) == 3
    command, address, name = submitted[0]
    assert address == "http://head:8265"
    assert name.startswith("sbdzsl-tune-")
    given = dict(zip(command[-4::2], command[-3::2], strict=True))
    assert load(TrainSettings, given["--config"]) == TrainSettings(router=RouterSettings(score="paper"))
    assert load(SweepSettings, given["--search"]) == SweepSettings(
        trials=7, study="mine", space={"router.hidden": Parameter(choices=(32, 64))}
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--stage", "router"], "stage: Input should be 'sbad' or 'sbdd' (found 'router')"),
        (["--stage", "sbdd", "--search", "{space: {router.hidden: {choices: [1]}}}"], "router.hidden: stage sbdd"),
        (["--search", "{trails: 3}"], "trails"),
        (["--config", "{routers: {}}"], "routers"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*WORDS, *words]) == 2
    assert reason in capsys.readouterr().err
