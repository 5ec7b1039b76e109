"""Training on several nodes of which one dies. A cluster of its own, so it stands in a module of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from sbdzsl.cluster.train import train_on_cluster
from sbdzsl.config import ClusterSettings
from tests.conftest import SMALL, UNSEEN, Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_THREAD = ClusterSettings(cpus_per_worker=1.0, gpus_per_worker=0.0)


def test_a_lost_node_leaves_the_training_to_the_others(trained: Trained, tmp_path: Path) -> None:
    """A cluster of its own: a head without CPUs and two nodes, of which one dies as a machine does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    lines: list[str] = []

    def lose_one(line: str) -> None:
        lines.append(line)
        # Where the machine is fast a surface is trained before its first epoch is told.
        if len(nodes) == 2 and (": epoch" in line or " is trained" in line):
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        bundle = train_on_cluster(
            trained.manifest, str(tmp_path / "b"), SMALL, ONE_THREAD, unseen=(UNSEEN,), report=lose_one
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "training 3 surfaces by 2 workers of 1 CPU, on cpu" in lines
    assert len(nodes) == 1, "no training was seen that could be disturbed"
    assert bundle.digest == trained.bundle.digest
