"""Runs of the pipeline with a training that takes no time: it brings a bundle that was trained before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.config import TrainSettings
from sbdzsl.pipeline import PipelineSettings
from sbdzsl.pipeline.steps import Outcome, Tune, run
from sbdzsl.registry import Registry
from tests.conftest import SMALL, UNSEEN, Trained
from tests.registry.test_gate import equal, worse  # noqa: F401  fixtures


@dataclass
class Lab:
    """A place for runs; each call is a process that comes to it. `lines` are those of the last call."""

    trained: Trained
    folder: Path
    num_trainings: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def tested(self) -> str:
        """A manifest of a few test images of each surface and label."""
        url = str(self.folder / "few.parquet")
        if not lake.exists(url):
            taken: Counter[tuple[str, str]] = Counter()
            rows = []
            for row in self.trained.manifest.to_pylist():
                kind = row["surface"], row["label"]
                if row["split"] == "test" and taken[kind] < 3:
                    rows.append(row)
                    taken[kind] += 1
            lake.write_manifest(pa.Table.from_pylist(rows, schema=self.trained.manifest.schema), url)
        return url

    @property
    def registry(self) -> Registry:
        """The registry that runs promote in."""
        return Registry(str(self.folder / "registry"))

    def settings(self, out: str = "run", *, promote: bool = True, **changes: Any) -> PipelineSettings:
        """Of a run that trains what the fixture `trained` was."""
        registry = self.registry.url if promote else None
        values = {
            "manifests": [self.trained.manifest_uri],
            "out": str(self.folder / out),
            "unseen": [UNSEEN],
            "train": SMALL.model_dump(),
            "evaluation": {"manifests": [self.tested]},
            "promotion": {"registry": registry},
        }
        return PipelineSettings.model_validate(values | changes)

    def run(
        self, settings: PipelineSettings | None = None, bundle_url: str | None = None, tune: Tune | None = None
    ) -> Outcome:
        """Run the pipeline, whose training brings the bundle at `bundle_url`, by default that of `trained`."""
        self.lines = []

        def train(manifest: pa.Table, out: str, recipe: TrainSettings) -> Bundle:
            assert manifest.equals(self.trained.manifest)
            assert recipe == SMALL
            self.num_trainings += 1
            bundles.copy(bundle_url or self.trained.bundle_url, out)
            return bundles.load(out)

        return run(settings or self.settings(), train, "anna", report=self.lines.append, tune=tune)

    def steps_done(self) -> set[str]:
        """Steps that the last call has done itself."""
        return {line.removesuffix(": begins") for line in self.lines if line.endswith(": begins")}


@pytest.fixture
def lab(trained: Trained, tmp_path: Path) -> Lab:
    """A place for runs of its own."""
    return Lab(trained, tmp_path)


@pytest.fixture
def page() -> Callable[[Outcome], str]:
    """The report of a run."""
    return lambda outcome: Path(outcome.report_url).read_text(encoding="utf-8")
