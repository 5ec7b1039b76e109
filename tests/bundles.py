"""Bundles of a few bytes, for tests of what carries them about and never looks into a net."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from sbdzsl import bundle as bundles
from sbdzsl.config import TrainSettings


def draw_bundle(folder: Path, seed: int) -> str:
    """Write a bundle without surfaces, as `bundles.save` lays it out, and return its digest."""
    generator = np.random.default_rng(seed)
    names = ("backbone", "router", "detectors/felt")
    files = {f"{name}.safetensors": safetensors.numpy.save({"w": generator.normal(size=9)}) for name in names}
    card = {
        "schema_version": bundles.SCHEMA_VERSION,
        "code_version": "0.1.0",
        "created_at": f"2026-11-{seed % 28 + 1:02}T00:00:00+00:00",
        "settings": TrainSettings().model_dump(),
        "detectors": {},
        "provenance": {"data_digest": f"data{seed}", "seed": seed, "images": {}},
        "files": {name: hashlib.sha256(blob).hexdigest() for name, blob in files.items()},
    }
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
    (folder / bundles.CARD).write_text(json.dumps(card))
    return bundles.digest_of(card)
