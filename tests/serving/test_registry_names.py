"""A running service is given bundles by a registry's name for them, and stays with what the name stood for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl.registry import Registry
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import Trained
from tests.serving.conftest import served


@pytest.fixture
def registry(trained: Trained, tmp_path: Path) -> Registry:
    """`production` is the trained bundle, `candidate` one with another threshold."""
    other = tmp_path / "other"
    shutil.copytree(trained.bundle_url, other)
    card = json.loads((other / bundles.CARD).read_text())
    for detector in card["detectors"].values():
        detector["settings"]["threshold_policy"] = "fixed:-100"
    (other / bundles.CARD).write_text(json.dumps(card))
    found = Registry(str(tmp_path / "registry"))
    found.promote(found.push(trained.bundle_url), "production", "anna", "the first")
    found.promote(found.push(str(other)), "candidate", "anna", "stricter")
    return found


def test_swap_candidate_and_the_way_back(trained: Trained, registry: Registry) -> None:
    production, candidate = (f"{registry.url}@{name}" for name in ("production", "candidate"))
    stricter = registry.resolve("candidate").digest
    with served(production, ServeSettings(threads=1)) as running:
        in_force = running.client.get("/v1/bundle").json()
        assert in_force["bundle"] == trained.bundle.digest
        assert running.client.put("/v1/candidate", json={"bundle": candidate}).json()["digest"] == stricter
        running.client.delete("/v1/candidate")

        registry.promote("candidate", "production", "anna", "tried")
        assert running.client.get("/v1/bundle").json()["bundle"] == trained.bundle.digest, "until it is told"
        swapped = running.client.post("/v1/bundle", json={"bundle": production}).json()
        assert (swapped["bundle"], swapped["bundle_url"]) == (stricter, registry.bundle_url(stricter))
        back = running.client.post("/v1/bundle/rollback").json()
        assert back["bundle"] == trained.bundle.digest, "the name stands for another one by now, and is not asked"

        refused = running.client.post("/v1/bundle", json={"bundle": f"{registry.url}@line7"})
        assert (refused.status_code, refused.json()["code"]) == (404, "no-version")
        assert running.client.get("/v1/bundle").json()["bundle"] == trained.bundle.digest
