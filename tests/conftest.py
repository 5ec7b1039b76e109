"""Shared fixtures: the data folder that a stranger's clone lacks, and one small bundle trained once for all tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from sbdzsl import datasets, lake, training
from sbdzsl.bundle import Bundle
from sbdzsl.config import DetectorSettings, RouterSettings, TrainSettings
from sbdzsl.datasets import synthetic

# Ray gives its workers less of the processor than what else runs here: tests that run side by side would starve them.
os.environ.setdefault("RAY_worker_niceness", "0")
# Tests tell nobody that they ran; and an actor less is started for each audit.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SEEN = ("brushed_steel", "cast_iron", "perforated_sheet")
UNSEEN = "woven_fabric"

#: What differs between the verdicts of two inspections of the same bytes: which image, when, how long.
PASSING = {"image_id", "uri", "modified_at", "inspected_at", "decode_ms", "route_ms", "detect_ms"}

#: Small enough to train in seconds. Detectors begin with learnt weights, so that each finds something.
SMALL = TrainSettings(
    router=RouterSettings(ce_vae_steps=60, vaegan_steps=20, hidden=32, copies=2),
    detector=DetectorSettings(epochs=4),
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images; skips where there is none."""
    folder = Path(os.environ.get("SBDZSL_SHARED", "../shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder} (set SBDZSL_SHARED): real images are not in the repository")
    return folder


@dataclass(frozen=True)
class Trained:
    """A drawn lake, its manifest and a bundle trained on three of its four surfaces."""

    manifest: pa.Table
    manifest_uri: str
    bundle: Bundle
    bundle_url: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained once for the whole run. Tests must not write into its folders."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    synthetic.write_lake(str(folder / "lake"), 160, seed=3, surfaces=(*SEEN, UNSEEN), size=128, defect_share=0.3)
    manifest = datasets.samples_to_table(datasets.ingest("dagm", str(folder / "lake"), seed=0).samples)
    manifest_uri = str(folder / "manifest.parquet")
    lake.write_manifest(manifest, manifest_uri)
    bundle_url = str(folder / "bundle")
    bundle = training.train(manifest, bundle_url, SMALL, seed=0, unseen=(UNSEEN,), report=lambda _: None)
    return Trained(manifest, manifest_uri, bundle, bundle_url)
