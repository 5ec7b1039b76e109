"""How well `datasets validate --suspects` finds defects among the good images. Writes results/suspects.json.

    SBDZSL_SHARED=../shared python benchmarks/suspects.py

5 % of the "good" images are defective ones relabelled as good. Average precision (step rule) and recall within the
top 10 % of the ranking, mean over seeds of which are planted. Beside it: chance (their share; 10 %), the trivial
baseline (how far the standard deviation of an image's pixels is from the median of all), and PatchCore's own features
(3x3 means of a middle stage) alone. Read these figures as the best case: contrast was chosen on DAGM class 1 and
KolektorSDD with these labels, and content was added to it after the magnetic tiles and the drawn surfaces had shown
that contrast alone does no better than chance on the first and misses much on the second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from record import record, shared_data

from sbdzsl import datasets, image, lake, screening
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import Sample, synthetic
from sbdzsl.metrics import average_precision
from sbdzsl.sbad.backbone import Backbone, load_backbone

PLANTED_SHARE, TOP_SHARE = 0.05, 0.1
MIDDLE_STAGE = 3  # of the maps of the backbone: s2, stride 8

SETS = {
    "dagm_class1": ("dagm", "DAGM2007", "dagm_class1"),
    "kolektorsdd": ("kolektorsdd", "KolektorSDD", None),
    "magnetic_tile": ("magnetic_tile", "MagneticTile", None),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = load_backbone(stages=screening.STAGES)
    figures = {}
    with tempfile.TemporaryDirectory() as work:
        for name, samples in surfaces(work):
            rows = [measure(*plant(samples, seed), backbone, seed) for seed in range(arguments.seeds)]
            figures[name] = summary(rows)
            print(name, {key: value["mean"] for key, value in figures[name].items()}, flush=True)
    drawn = [figures.pop(name) for name in list(figures) if name in synthetic.SURFACES]
    figures["drawn, mean of ten"] = {
        key: {
            "mean": mean([row[key]["mean"] for row in drawn]),
            "worst surface": min(row[key]["mean"] for row in drawn),
        }
        for key in drawn[0]
    }
    print_table(figures)
    record("suspects", {"seeds": arguments.seeds, "planted_share": PLANTED_SHARE, "sets": figures})
    return 0


def surfaces(work: str) -> list[tuple[str, list[Sample]]]:
    found = [
        (name, datasets.ingest(adapter, str(shared_data() / folder), surface=surface).samples)
        for name, (adapter, folder, surface) in SETS.items()
    ]
    synthetic.write_lake(str(Path(work) / "lake"), 600, seed=0, defect_share=0.2)
    lake_samples = datasets.ingest("dagm", str(Path(work) / "lake")).samples
    return found + [(name, [s for s in lake_samples if s.surface == name]) for name in synthetic.SURFACES]


def plant(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], set[str]]:
    """The good images with some defective ones relabelled as good, and the ids of these; splits are not used here."""
    good = [sample for sample in samples if sample.label == "benign"]
    defects = [sample for sample in samples if sample.label == "defect"]
    number = max(1, round(PLANTED_SHARE / (1 - PLANTED_SHARE) * len(good)))
    chosen = [defects[k] for k in np.random.default_rng(seed).permutation(len(defects))[:number]]
    mixed = [replace(sample, label="benign", split="train", mask_uri=None) for sample in (*good, *chosen)]
    return mixed, {sample.image_id for sample in chosen}


def measure(samples: list[Sample], planted: set[str], backbone: Backbone, seed: int) -> dict[str, float]:
    started = time.process_time()
    ranked = screening.rank_suspects(samples, len(samples), backbone, ImageSettings(), seed)
    ms = 1000 * (time.process_time() - started) / len(samples)
    score = {finding.sample.image_id: finding.score for finding in ranked if finding.sample}
    labels = np.array([sample.image_id in planted for sample in samples])
    greys = [image.decode(lake.read_bytes(sample.uri)).grey() for sample in samples]
    rankings = {
        "ours": np.array([score[sample.image_id] for sample in samples], np.float64),
        "deviation": np.abs(screening.robust_z([float(grey.std()) for grey in greys])),
        "middle-stage means": middle_stage(samples, greys, backbone, seed),
    }
    row = {"images": float(len(samples)), "planted": float(len(planted)), "cpu ms/image": ms}
    row |= {"AP chance": float(labels.mean())}
    for name, scores in rankings.items():
        ap = average_precision(labels, scores)
        assert ap is not None  # one at least is planted
        row[f"AP {name}"] = ap
        top = np.argsort(-scores, kind="stable")[: round(TOP_SHARE * len(scores))]
        row[f"recall@10% {name}"] = float(labels[top].sum() / labels.sum())
    return row


def middle_stage(
    samples: list[Sample], greys: list[NDArray[np.float32]], backbone: Backbone, seed: int
) -> NDArray[np.float64]:
    """PatchCore's features in place of ours, all else alike."""
    cells = {}
    for sample, grey in zip(samples, greys, strict=True):
        with torch.inference_mode():
            stage = backbone(torch.from_numpy(screening.shrunk(grey))[None, None])[MIDDLE_STAGE]
            cells[sample] = (F.avg_pool2d(stage, 3, 1, 1)[0].flatten(1).T.numpy(),)
    banks = screening.draw_banks(cells, seed)
    return np.array([screening.strangest_cells(found, sample, banks)[0] for sample, found in cells.items()])


def mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"mean": mean([row[name] for row in rows]), "sd": round(float(np.std([row[name] for row in rows])), 3)}
        for name in rows[0]
    }


def print_table(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    columns = list(next(iter(figures.values())))
    for column in columns:
        cells = (f"{name} {row[column]['mean']:.3f}" for name, row in figures.items())
        print(column.ljust(32) + "   ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
