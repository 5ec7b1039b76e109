"""Training on a real cluster of this machine: the bundle of the single process, whatever dies or fails on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import audit_lab
import numpy as np
import pyarrow as pa
import pytest

from sbdzsl import bundle as bundles
from sbdzsl import training
from sbdzsl.cluster.train import train_on_cluster
from sbdzsl.config import ClusterSettings
from sbdzsl.errors import AuditError, StoppedError, TrainingError
from tests.conftest import SEEN, SMALL, UNSEEN, Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_THREAD = ClusterSettings(cpus_per_worker=1.0, gpus_per_worker=0.0)


def left_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "training").iterdir())


def training_workers() -> list[int]:
    """Processes of this test's cluster that train."""
    found = audit_lab.descendants(os.getpid())
    return [pid for pid in found if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def with_few_images(manifest: pa.Table, surface: str) -> pa.Table:
    """The manifest with three training images of one surface: too few to learn from."""
    rows = manifest.to_pylist()
    few = [row for row in rows if (row["surface"], row["split"]) == (surface, "train")][3:]
    gone = {row["image_id"] for row in few}
    return manifest.filter(np.array([row["image_id"] not in gone for row in rows]))


def test_the_bundle_is_the_one_that_a_single_process_trains(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    lines: list[str] = []
    bundle = train_on_cluster(
        trained.manifest, str(tmp_path / "b"), SMALL, ONE_THREAD, unseen=(UNSEEN,), report=lines.append
    )
    assert bundle.digest == trained.bundle.digest
    assert bundle.card["files"] == trained.bundle.card["files"]
    assert bundles.load(str(tmp_path / "b")).digest == trained.bundle.digest
    assert "training 3 surfaces by 2 workers of 1 CPU, on cpu" in lines
    assert {line.split(" is trained")[0] for line in lines if " is trained" in line} == set(SEEN)
    assert left_of(tmp_path / "b") == [*(f"{surface}.png" for surface in sorted(SEEN)), "router"]


def test_a_worker_killed_in_the_middle_changes_nothing(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    lines: list[str] = []
    killed: list[int] = []

    def kill_one(line: str) -> None:
        lines.append(line)
        # The first that a surface says. Where the machine is fast, it is trained before its first epoch is told.
        if not killed and line.startswith("["):
            killed.append(training_workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    bundle = train_on_cluster(
        trained.manifest, str(tmp_path / "b"), SMALL, ONE_THREAD, unseen=(UNSEEN,), report=kill_one
    )
    assert killed, "no training was seen that could be disturbed"
    assert any("its process died" in line for line in lines), lines
    assert bundle.digest == trained.bundle.digest


def test_a_surface_that_fails_stops_no_other_and_the_bundle_can_do_without_it(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    out, lines = tmp_path / "b", list[str]()
    manifest = with_few_images(trained.manifest, SEEN[1])

    def again(*, allow_missing: bool) -> bundles.Bundle:
        return train_on_cluster(
            manifest, str(out), SMALL, ONE_THREAD, 0, (UNSEEN,), allow_missing=allow_missing, report=lines.append
        )

    with pytest.raises(TrainingError, match=f"{SEEN[1]}: too-few-images: .*3 readable training") as caught:
        again(allow_missing=False)
    assert caught.value.code == "surfaces-failed"
    assert "1 of 3 surfaces" in caught.value.message
    assert not bundles.exists(str(out))
    lines.clear()
    bundle = again(allow_missing=True)
    assert "resuming: 2 of 3 surfaces are trained already" in lines
    assert not any(" is trained" in line for line in lines), "a finished surface is not trained again"
    assert set(bundle.surfaces) == set(SEEN) - {SEEN[1]}
    assert set(bundle.card["provenance"]["missing"]) == {SEEN[1]}
    for surface in bundle.surfaces:
        name = f"detectors/{surface}.safetensors"
        assert bundle.card["files"][name] == trained.bundle.card["files"][name]


def test_out_of_time_keeps_what_is_done_and_says_how_to_go_on(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    """Trained half by the single process, which leaves the same files; the cluster is given no time for the rest."""
    out, lines = str(tmp_path / "b"), list[str]()

    def stop_at_the_second(line: str) -> None:
        if line.startswith("[2/3]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(trained.manifest, out, SMALL, unseen=(UNSEEN,), report=stop_at_the_second)
    hurried = ONE_THREAD.model_copy(update={"max_minutes": 0.001})
    with pytest.raises(StoppedError, match="Run the same command again") as caught:
        train_on_cluster(trained.manifest, out, SMALL, hurried, unseen=(UNSEEN,), report=lines.append)
    assert caught.value.code == "out-of-time"
    assert min(SEEN) not in caught.value.message
    assert all(surface in caught.value.message for surface in sorted(SEEN)[1:])
    assert "resuming: 1 of 3 surfaces are trained already" in lines


def test_what_no_node_can_hold_is_said_within_seconds(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    started = time.monotonic()
    large = ClusterSettings(cpus_per_worker=64.0)
    with pytest.raises(AuditError, match=r"a training worker needs \{'CPU': 64.0\} on one node") as caught:
        train_on_cluster(trained.manifest, str(tmp_path / "b"), SMALL, large, unseen=(UNSEEN,), report=lambda _: None)
    assert caught.value.code == "no-resources"
    assert time.monotonic() - started < 15
