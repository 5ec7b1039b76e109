"""Eight drawn surfaces trained in one process and by a cluster of this machine: wall time, start-up apart.

python benchmarks/train_cluster.py [--images 200] [--epochs 12] [--workers 2]

Both run as a user starts them, a process each, with the same threads a net. Surfaces are trained for a fixed number of
epochs, so that time does not depend on when validation stops to gain. The cluster's start-up is what passes from the
command to the first surface that a worker takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import audit_lab
from record import record

from sbdzsl import datasets, lake
from sbdzsl.datasets import synthetic

KEPT = audit_lab.ROOT / "runs" / "train"
SURFACES = tuple(synthetic.SURFACES)[:8]


def drawn_manifest(num_images: int) -> Path:
    """A manifest of `num_images` drawn images of each surface; drawn once."""
    folder = KEPT / f"lake-{num_images}"
    manifest = folder.with_suffix(".parquet")
    if not manifest.exists():
        synthetic.write_lake(str(folder), num_images * len(SURFACES), 7, SURFACES, 256, defect_share=0.2)
        table = datasets.samples_to_table(datasets.ingest("dagm", str(folder), seed=0).samples)
        lake.write_manifest(table, str(manifest))
    return manifest


def run(name: str, manifest: Path, epochs: int, *more: str) -> tuple[dict[str, float], str]:
    """Train by the command line; seconds in all and up to the first surface's images, and the nets' sha256."""
    bundle = KEPT / name
    shutil.rmtree(bundle, ignore_errors=True)
    settings = f"{{detector: {{epochs: {epochs}, max_minutes: 100}}}}"
    words = ["--manifest", str(manifest), "--bundle", str(bundle), "--config", settings, *more]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sbdzsl.cli", "train", *words],
        env=audit_lab.environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found: dict[str, float] = {}
    for line in process.stdout:
        print(f"{time.perf_counter() - started:7.1f} s  {line}", end="", flush=True)
        if line.startswith("["):  # a surface's images are read
            found.setdefault("first_surface_read_s", round(time.perf_counter() - started, 1))
        if line.startswith("router:"):
            found["surfaces_done_s"] = round(time.perf_counter() - started, 1)
    if process.wait():
        sys.exit(f"{name} ended with {process.returncode}")
    found["wall_s"] = round(time.perf_counter() - started, 1)
    card = json.loads((bundle / "bundle.json").read_text())
    return found, json.dumps(card["files"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="of each surface")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    manifest = drawn_manifest(given.images)
    single, nets = run("single", manifest, given.epochs)
    spread = f"{{workers: {given.workers}, cpus_per_worker: 1, gpus_per_worker: 0}}"
    cluster, same_nets = run(
        "cluster", manifest, given.epochs, "--cluster", "--cluster-config", spread, "--address", "local"
    )
    figures: dict[str, Any] = {
        "surfaces": len(SURFACES),
        "images_per_surface": given.images,
        "epochs": given.epochs,
        "workers": given.workers,
        "threads_per_net": 1,
        "single": single,
        "cluster": cluster,
        "ratio_of_wall_times": round(cluster["wall_s"] / single["wall_s"], 3),
        "start_up_s": round(cluster["first_surface_read_s"] - single["first_surface_read_s"], 1),
        "same_nets": nets == same_nets,
    }
    print(json.dumps(figures, indent=2))
    record("train_cluster", figures)


if __name__ == "__main__":
    main()
