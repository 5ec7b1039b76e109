"""`sbdzsl audit`: what its words come to. The audits themselves are in `tests/cluster` and `tests/e2e`."""

import json
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import cli, lake
from sbdzsl.cluster import audit as audits
from sbdzsl.cluster import jobs
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.config import AuditSettings, ThresholdRule, load
from sbdzsl.errors import StoppedError
from tests.cluster.plans import judge, plan_of
from tests.conftest import Trained

WORDS = ["audit", "--bundle", "b", "--lake", "s3://lake", "--out", "o"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AuditRequest]:
    """The requests that would be carried out; each ends as stopped, so that nothing is printed."""
    found: list[AuditRequest] = []

    def instead(request: AuditRequest, *_: object) -> None:
        found.append(request)
        raise StoppedError("out-of-time", "enough")

    monkeypatch.setattr(audits, "run_audit", instead)
    return found


def test_options_stand_above_the_settings_file(asked: list[AuditRequest], tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text("sample: 0.5\nactors: 3\nexclude: [a.png]\n")
    words = [
        "--config",
        str(config),
        "--sample",
        "1%",
        "--max-errors",
        "0.25",
        "--include",
        "*.png",
        "--include",
        "*.bmp",
    ]
    words += ["--surface-policy", "leather=fixed:3", "--surface-policy", "wood=max-f1", "--newest-first", "--only-new"]
    assert cli.main([*WORDS, *words]) == 3
    request = asked[0]
    rules = {"leather": ThresholdRule.parse("fixed:3"), "wood": ThresholdRule.parse("max-f1")}
    assert request.settings == AuditSettings(
        sample=0.01,
        actors=3,
        exclude=("a.png",),
        include=("*.png", "*.bmp"),
        max_errors=0.25,
        newest_first=True,
        surface_policies=rules,
    )
    assert (request.bundle_url, request.lake_url, request.out, request.only_new) == ("b", "s3://lake", "o", True)


def test_run_may_be_said_and_settings_may_stand_in_braces(asked: list[AuditRequest]) -> None:
    assert cli.main([WORDS[0], "run", *WORDS[1:], "--config", "{actors: 2, limit: 7}"]) == 3
    assert (asked[0].settings.actors, asked[0].settings.limit) == (2, 7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sample", "many"], "expected a share such as 1% or 0.01"),
        (["--sample", "120%"], "sample: Input should be less than or equal to 1"),
        (["--surface-policy", "leather"], "expected SURFACE=POLICY"),
        (["--config", "{acters: 2}"], "acters"),
    ],
)
def test_words_that_make_no_sense_are_explained(
    words: list[str], expected: str, asked: list[AuditRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*WORDS, *words]) == 2
    assert expected in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not asked


def test_a_job_gets_the_same_words_and_the_settings_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submitted: list[tuple[Any, ...]] = []

    def instead(command: list[str], address: str, name: str, *_: object, **__: object) -> int:
        submitted.append((command, address, name))
        return 3

    monkeypatch.setattr(jobs, "submit", instead)
    config = tmp_path / "audit.yaml"
    config.write_text("actors: 3\nsurface_policies: {leather: max-f1}\n")
    words = [*WORDS, "--config", str(config), "--limit", "9", "--only-new"]
    assert cli.main([*words, "--submit", "http://head:8265"]) == 3
    assert cli.main([*words, "--submit=http://head:8265"]) == 3
    command, address, name = submitted[0]
    assert address == "http://head:8265"
    assert command[:3] == ["python", "-m", "sbdzsl.cli"]
    assert command[3:-2] == [*WORDS, "--limit", "9", "--only-new"]
    assert load(AuditSettings, command[-1]) == AuditSettings(
        actors=3, limit=9, surface_policies={"leather": ThresholdRule.parse("max-f1")}
    )
    assert submitted[1] == submitted[0], "the same request has the same name"
    assert cli.main([*words, "--exclude", "a.png", "--submit", "http://head:8265"]) == 3
    assert submitted[2][2] != name


def test_an_estimate_is_printed(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = str(tmp_path / "manifest.parquet")
    lake.write_manifest(trained.manifest.slice(0, 9), manifest)
    words = ["audit", "--bundle", trained.bundle_url, "--manifest", manifest, "--out", "o", "--dry-run"]
    assert cli.main([*words, "--config", json.dumps({"prices": {"cpu_hour": 1000, "currency": "DKK"}})]) == 0
    said = capsys.readouterr().out
    assert "images" in said
    assert "DKK" in said


def test_two_audits_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, verdict in (("a", "good"), ("b", "unseen")):
        plan = plan_of(tmp_path / name)
        judge(plan, 0)
        judge(plan, 1, verdict)
    words = ["audit", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "changed.csv")]
    assert cli.main(words) == 0
    assert "20 images are in both audits, judged by the same bundle; 10 changed" in capsys.readouterr().out
    assert len((tmp_path / "changed.csv").read_text().splitlines()) == 11
    assert cli.main(["audit", "diff", str(tmp_path / "nowhere"), str(tmp_path / "b")]) == 1
    assert "no audit at" in capsys.readouterr().err
