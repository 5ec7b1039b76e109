"""The folder of a run: a step is done once, another step is another record, and a run is for one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import lake
from sbdzsl.errors import PipelineError
from sbdzsl.pipeline.journal import RUN, RunFolder
from tests.stores import memory, s3, s3_endpoint  # noqa: F401  fixtures

PURPOSE = {"manifest": "4f3a", "train": {"detector": {"epochs": 40, "width": 1.0}}, "unseen": []}


@pytest.fixture(params=["local", "s3", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder for a run on each kind of store."""
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue(request.param)}/runs/1"


def begun(url: str, purpose: dict[str, Any] | None = None) -> tuple[RunFolder, list[str]]:
    """A process that comes to the folder, and the lines it says."""
    lines: list[str] = []
    folder = RunFolder(url, lines.append)
    folder.begin(purpose or PURPOSE, {"manifests": ["m.parquet"]})
    return folder, lines


def test_a_step_is_done_once(url: str) -> None:
    done: list[int] = []

    def work() -> dict[str, Any]:
        done.append(1)
        return {"bundle": "77", "scores": [0.1, None]}

    folder, lines = begun(url)
    first = folder.step("train", {"rows": 3}, work)
    assert (first.came_out, first.went_in) == ({"bundle": "77", "scores": [0.1, None]}, {"rows": 3})
    assert lines == ["train: begins"]
    again, lines = begun(url)
    assert again.seal == folder.seal
    assert again.step("train", {"rows": 3}, work) == first
    assert lines == [f"train: done already, {first.finished_at:%Y-%m-%d %H:%M:%S} UTC"]
    assert len(done) == 1
    assert again.last == first.seal
    assert again.step("train", {"rows": 4}, work).seal != first.seal
    assert len(done) == 2
    assert [record.went_in["rows"] for record in again.history()] == [3, 4]


def test_a_step_that_failed_or_whose_files_are_gone_is_done_again(tmp_path: Path) -> None:
    folder, lines = begun(str(tmp_path / "run"))

    def fails() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("evaluate", {}, fails)
    assert folder.find("evaluate", {}) is None

    def writes() -> dict[str, Any]:
        lake.write_bytes(folder.path("page.html"), b"page")
        return {"pages": 1}

    first = folder.step("evaluate", {}, writes, lambda: lake.exists(folder.path("page.html")))
    (tmp_path / "run" / "page.html").unlink()
    assert folder.step("evaluate", {}, writes, lambda: lake.exists(folder.path("page.html"))) == first
    assert (tmp_path / "run" / "page.html").read_bytes() == b"page"
    assert lines[-1] == "evaluate: is recorded, but what it left is not there"


def test_another_purpose_is_refused_and_says_what_changed(url: str) -> None:
    begun(url)
    other = {"manifest": "99aa", "train": {"detector": {"epochs": 60, "width": 1.0}}, "unseen": ["cork"]}
    with pytest.raises(PipelineError) as caught:
        begun(url, other)
    assert caught.value.code == "other-run"
    said = caught.value.message
    assert "manifest: 4f3a then, 99aa now" in said
    assert "train.detector.epochs: 40 then, 60 now" in said
    assert "unseen: nothing then, ['cork'] now" in said
    assert "width" not in said
    begun(url)


def test_what_is_no_record_is_said(tmp_path: Path) -> None:
    folder, _ = begun(str(tmp_path / "run"))
    folder.step("train", {}, dict)
    (record,) = (tmp_path / "run" / "steps").iterdir()
    assert json.loads(record.read_text())["step"] == "train"
    record.write_text("{")
    with pytest.raises(PipelineError, match=r"is no record of a step; restore it from a backup, or remove it"):
        folder.find("train", {})
    (tmp_path / "run" / RUN).write_text("[]")
    with pytest.raises(PipelineError, match="says not what the run is for") as caught:
        begun(str(tmp_path / "run"))
    assert caught.value.code == "damaged-run"
