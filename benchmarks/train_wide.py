"""One surface trained by one process and by two that split each batch: AP on its test images and time, three seeds.

python benchmarks/train_wide.py [--source kolektorsdd] [--epochs 12] [--workers 2] [--seeds 3]

Each process has one thread. The team is that of `cluster/train.py` without Ray, whose start-up `train_cluster.py`
measures. Seconds are those of the training alone, of the first process; images are decoded before. Seconds of CPU, of
each process, also mean something where other work is on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detector_runs import decoded, samples_of
from record import record

from sbdzsl.config import DetectorSettings
from sbdzsl.metrics import average_precision
from sbdzsl.sbdd.fit import TrainingImage, fit_detector
from sbdzsl.sbdd.team import Team


def train_and_test(rank: int, size: int, group: str, source: str, seed: int, epochs: int, results: Any) -> None:
    """What each process of a team does; the first one puts its figures into `results`."""
    torch.set_num_threads(1)
    team = Team(rank, size)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=size)
    images: dict[str, list[TrainingImage]] = {"train": [], "val": [], "test": []}
    for sample in samples_of(source, seed, None):
        assert sample.split is not None
        images[sample.split].append(decoded(sample))
    settings = DetectorSettings(epochs=epochs, max_minutes=60)
    team.agree(seed, "seeds")  # nobody's clock starts before all have read
    started, cpu = time.perf_counter(), time.process_time()
    fitted = fit_detector(images["train"], images["val"], settings, seed, team=team)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    cpus = team.spread(lambda _: round(cpu, 1), range(size))
    if team.is_first:
        labels = np.array([image.defective for image in images["test"]])
        scores = np.array([fitted.detector.detect(image.grey).score for image in images["test"]])
        ap, val_ap = average_precision(labels, scores), fitted.history[-1].val_ap
        row = {"seed": seed, "workers": size, "ap": ap, "val_ap": val_ap, "train_s": round(seconds, 1)}
        results.put(row | {"cpu_s_of_each": cpus})


def run(size: int, source: str, seed: int, epochs: int) -> dict[str, Any]:
    """Figures of one training by `size` processes."""
    context = get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, str(Path(folder) / "group"), source, seed, epochs, results)
        processes = [context.Process(target=train_and_test, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        figures = results.get(timeout=3600)
        for process in processes:
            process.join()
    print(figures, flush=True)
    return figures


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and deviation over the seeds."""
    aps, seconds, cpu = zip(*((row["ap"], row["train_s"], max(row["cpu_s_of_each"])) for row in rows), strict=True)
    return {
        "ap_mean": mean(aps),
        "ap_std": stdev(aps),
        "train_s_mean": round(mean(seconds), 1),
        "cpu_s_of_the_busiest_mean": round(mean(cpu), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="kolektorsdd", help="as in detector_runs.py")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    load_before = os.getloadavg()[0]
    # Side by side in time, so that other work on the machine disturbs both alike.
    rows = [run(size, given.source, seed, given.epochs) for seed in range(given.seeds) for size in (1, given.workers)]
    by_size = {size: [row for row in rows if row["workers"] == size] for size in (1, given.workers)}
    found = {f"{size} workers": summary(of_size) for size, of_size in by_size.items()}
    figures: dict[str, Any] = {
        "source": given.source,
        "epochs": given.epochs,
        "threads_per_worker": 1,
        "load_before": round(load_before, 2),
        "summary": found,
        "ratio_of_cpu_s": round(
            found[f"{given.workers} workers"]["cpu_s_of_the_busiest_mean"]
            / found["1 workers"]["cpu_s_of_the_busiest_mean"],
            3,
        ),
        "ratio_of_train_s": round(
            mean(row["train_s"] for row in by_size[given.workers]) / mean(row["train_s"] for row in by_size[1]), 3
        ),
        "runs": rows,
    }
    print(json.dumps(found, indent=2))
    record("train_wide", figures)


if __name__ == "__main__":
    main()
