"""Ten drawn surfaces trained in one process and on a cluster of two nodes, of which one is lost half-way.

python benchmarks/train_cluster.py [--surfaces 10] [--images 200] [--epochs 8] [--naive 4]

1. `single`: one process, as many threads as the cluster has workers.
2. `cluster`: two nodes of one CPU each on this machine (`ray.cluster_utils.Cluster`), a worker of one thread on each.
   Its start-up is what passes from the command to the first surface that a worker has read, less than in `single`.
3. `naive`: a few of the surfaces, each by a Ray Train run of its own, as many at a time as there are nodes. Time for
   all ten follows in proportion, and is said to.
4. `lost_node`: as `cluster`, but once half of the surfaces are trained a node is killed; once another one is trained by
   the node that is left, the driver is killed, too; then the same command again. What was finished must not be trained
   again, and the nets must be those of `cluster`.

All but the third run as a user starts them, a process each. Surfaces are trained for a fixed number of epochs, so that
time does not depend on when validation stops to gain.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import audit_lab
import ray
from ray.cluster_utils import Cluster
from record import record

from sbdzsl import datasets, lake
from sbdzsl.cluster import train as cluster_train
from sbdzsl.config import ClusterSettings, DetectorSettings, RouterSettings, TrainSettings
from sbdzsl.datasets import synthetic
from sbdzsl.training import plan_training

KEPT = audit_lab.ROOT / "runs" / "train"
SURFACES = tuple(synthetic.SURFACES)
NODES = 2
SPREAD = ClusterSettings(workers=NODES, cpus_per_worker=1, gpus_per_worker=0)


def drawn_manifest(num_surfaces: int, num_images: int) -> Path:
    """A manifest of `num_images` drawn images of each surface; drawn once."""
    folder = KEPT / f"lake-{num_surfaces}x{num_images}"
    manifest = folder.with_suffix(".parquet")
    if not manifest.exists():
        surfaces = SURFACES[:num_surfaces]
        synthetic.write_lake(str(folder), num_images * num_surfaces, 7, surfaces, 256, defect_share=0.2)
        table = datasets.samples_to_table(datasets.ingest("dagm", str(folder), seed=0).samples)
        lake.write_manifest(table, str(manifest))
    return manifest


def settings_of(epochs: int) -> TrainSettings:
    """What is trained, the same in all runs; no time limit ends it."""
    return TrainSettings(router=RouterSettings(copies=2), detector=DetectorSettings(epochs=epochs, max_minutes=100))


class Command:
    """One `sbdzsl train` as a user starts it. `lines` come with the seconds since its start."""

    def __init__(self, bundle: Path, manifest: Path, epochs: int, threads: int, *more: str) -> None:
        self.lines: list[tuple[float, str]] = []
        self._started = time.perf_counter()
        settings = json.dumps(settings_of(epochs).model_dump(mode="json", exclude_defaults=True))
        words = ["--manifest", str(manifest), "--bundle", str(bundle), "--config", settings, *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sbdzsl.cli", "train", *words],
            env=audit_lab.environment(OMP_NUM_THREADS=str(threads)),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, watch: Callable[[str], None] = lambda _: None) -> int:
        """Follow it to its end; its exit code. `watch` is shown each line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.perf_counter() - self._started, line.rstrip()))
            print(f"{self.lines[-1][0]:7.1f} s  {line}", end="", flush=True)
            watch(line.rstrip())
        return self.process.wait()

    def finished(self) -> set[str]:
        """Surfaces that it says to have trained."""
        return {line.split(" is trained")[0] for _, line in self.lines if " is trained" in line}

    def times(self) -> dict[str, float]:
        """Seconds in all, up to the first surface's images, and up to the router."""
        first = next(seconds for seconds, line in self.lines if line.startswith("["))
        router = next(seconds for seconds, line in self.lines if line.startswith("router:"))
        wall = time.perf_counter() - self._started
        return {
            "wall_s": round(wall, 1),
            "first_surface_read_s": round(first, 1),
            "surfaces_done_s": round(router, 1),
        }


def nets_of(bundle: Path) -> dict[str, str]:
    """Names and sha256 of a bundle's files."""
    files: dict[str, str] = json.loads((bundle / "bundle.json").read_text())["files"]
    return files


def fresh(name: str) -> Path:
    """A folder for a bundle, without what was there."""
    shutil.rmtree(KEPT / name, ignore_errors=True)
    return KEPT / name


def trained_whole(command: Command) -> dict[str, float]:
    """Times of a command that has to succeed."""
    if command.run():
        sys.exit(f"ended with {command.process.returncode}")
    return command.times()


def naive(manifest: Path, epochs: int, number: int, address: str) -> dict[str, Any]:
    """A few surfaces, each by a run of its own, `NODES` of them at a time."""
    plan = plan_training(lake.read_manifest(str(manifest)), str(fresh("naive")), settings_of(epochs))
    one_worker = SPREAD.model_copy(update={"workers": 1})

    def train(surface: str) -> float:
        begun = time.perf_counter()
        cluster_train._train_missing(plan, [surface], one_worker, time.time() + 3600, print)
        return time.perf_counter() - begun

    with cluster_train.session(address):
        started = time.perf_counter()
        with ThreadPoolExecutor(NODES) as lanes:
            each = list(lanes.map(train, plan.surfaces[:number]))
        wall = time.perf_counter() - started
    return {
        "surfaces": number,
        "surfaces_done_s": round(wall, 1),
        "each_s": [round(seconds, 1) for seconds in each],
        "for_all_in_proportion_s": round(wall * len(plan.surfaces) / number, 1),
    }


def lost_node(
    manifest: Path, num_surfaces: int, epochs: int, cluster: Cluster, nodes: list[Any], nets: dict[str, str]
) -> dict[str, Any]:
    """Half-way a node is killed, then the driver; the same command again must end the work, and only that."""
    bundle = fresh("lost-node")
    words = spread(cluster.address)
    first = Command(bundle, manifest, epochs, 1, *words)
    lost_at: list[int] = []

    def disturb(line: str) -> None:
        finished = len(first.finished())
        if not lost_at and finished >= num_surfaces // 2:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            lost_at.append(finished)
        elif lost_at and finished > lost_at[0] and first.process.poll() is None:
            os.killpg(first.process.pid, signal.SIGKILL)

    code = first.run(disturb)
    if code != -signal.SIGKILL:
        sys.exit(f"the first start was to be killed, and ended with {code}")
    kept = {path.name.removesuffix(".trained"): path.stat().st_mtime_ns for path in bundle.glob("training/*.trained")}
    curves = {surface: (bundle / "training" / f"{surface}.png").stat().st_mtime_ns for surface in kept}
    second = Command(bundle, manifest, epochs, 1, *words)
    times = trained_whole(second)
    resumed = next(line for _, line in second.lines if line.startswith("resuming:"))
    found = re.search(r"resuming: (\d+) of", resumed)
    assert found is not None
    trained_again = second.finished() & set(kept)
    rewritten = [s for s, when in curves.items() if (bundle / "training" / f"{s}.png").stat().st_mtime_ns != when]
    return {
        "trained_when_the_node_was_lost": lost_at[0],
        "kept_when_the_driver_was_killed": len(kept),
        "taken_by_the_second_start": int(found[1]),
        "trained_by_the_second_start": len(second.finished()),
        "trained_again": sorted(trained_again),
        "files_of_kept_ones_written_again": rewritten,
        "second_start": times,
        "first_start_s": round(first.lines[-1][0], 1),
        "surfaces_in_the_bundle": len(json.loads((bundle / "bundle.json").read_text())["detectors"]),
        "same_nets_as_undisturbed": nets_of(bundle) == nets,
    }


def spread(address: str) -> list[str]:
    """The words that put a training on a cluster."""
    values = json.dumps(SPREAD.model_dump(exclude_defaults=True))
    return ["--cluster", "--cluster-config", values, "--address", address]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", type=int, default=10, help="at most ten; fewer to try it")
    parser.add_argument("--images", type=int, default=200, help="of each surface")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--naive", type=int, default=4, help="surfaces that are trained by a run each")
    given = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    manifest = drawn_manifest(given.surfaces, given.images)
    load_before = os.getloadavg()[0]
    single = trained_whole(Command(fresh("single"), manifest, given.epochs, NODES))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(NODES)]
        bundle = fresh("cluster")
        spread_out = trained_whole(Command(bundle, manifest, given.epochs, 1, *spread(cluster.address)))
        one_by_one = naive(manifest, given.epochs, given.naive, cluster.address)
        disturbed = lost_node(manifest, given.surfaces, given.epochs, cluster, nodes, nets_of(bundle))
    finally:
        ray.shutdown()
        cluster.shutdown()
    figures: dict[str, Any] = {
        "surfaces": given.surfaces,
        "images_per_surface": given.images,
        "epochs": given.epochs,
        "nodes": NODES,
        "threads": {"single": NODES, "cluster": f"1 a worker, {NODES} workers"},
        "load_before": round(load_before, 2),
        "single": single,
        "cluster": spread_out,
        "ratio_of_wall_times": round(spread_out["wall_s"] / single["wall_s"], 3),
        "start_up_s": round(spread_out["first_surface_read_s"] - single["first_surface_read_s"], 1),
        "goal_s": round(1.10 * single["wall_s"] + 45, 1),
        "naive": one_by_one,
        "lost_node": disturbed,
    }
    print(json.dumps(figures, indent=2))
    record("train_cluster", figures)


if __name__ == "__main__":
    main()
