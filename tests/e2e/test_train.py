"""A training killed for real, here and on a cluster, and the same command again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import SEEN, SMALL, UNSEEN, Trained

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_training_ends_by_the_same_command_in_the_bundle_of_an_undisturbed_one(
    trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL.model_dump(exclude_defaults=True)))
    command = [sys.executable, "-m", "sbdzsl.cli", "train", "--manifest", trained.manifest_uri, "--unseen", UNSEEN]
    command += ["--config", str(tmp_path / "small.yaml"), "--bundle"]
    # Bits depend on the number of threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    undisturbed, bundle = tmp_path / "undisturbed", tmp_path / "bundle"
    subprocess.run([*command, str(undisturbed)], env=environment, capture_output=True, check=True)
    finished = bundle / "training" / f"{min(SEEN)}.png"
    process = subprocess.Popen(
        [*command, str(bundle)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert finished.exists()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (bundle / "bundle.json").exists()
    again = subprocess.run([*command, str(bundle)], env=environment, capture_output=True, text=True, check=True)
    first = again.stdout.partition("[2/3]")[0]
    assert "[1/3]" in first
    assert "epoch" not in first, "a finished surface is not trained again"
    ours, theirs = (json.loads((folder / "bundle.json").read_text())["files"] for folder in (bundle, undisturbed))
    assert ours == theirs


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_on_a_cluster_whose_driver_is_killed_ends_by_the_same_command_in_the_same_bundle(
    trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL.model_dump(exclude_defaults=True)))
    words = ["--manifest", trained.manifest_uri, "--unseen", UNSEEN, "--config", str(tmp_path / "small.yaml")]
    words += ["--cluster-config", "{workers: 1, cpus_per_worker: 1, gpus_per_worker: 0}", "--bundle"]
    bundle = tmp_path / "bundle"
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words, str(bundle), "--address", "local"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(bundle.glob("training/*.trained")):
        assert first.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no surface was trained in five minutes"
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path.stem for path in bundle.glob("training/*.trained")}
    assert len(kept) < len(SEEN), "the kill came too late to show anything"
    assert not (bundle / "bundle.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    # A worker may have outlived its driver by a moment, and finished one more.
    resumed = re.search(r"resuming: ([12]) of 3 surfaces are trained already", again.stdout)
    assert resumed, again.stdout
    trained_now = {line.split(" is trained")[0] for line in again.stdout.splitlines() if " is trained" in line}
    assert len(trained_now) == len(SEEN) - int(resumed[1])
    assert trained_now.isdisjoint(kept), "a finished surface is not trained again"
    assert f"bundle {trained.bundle.digest[:16]} -> {bundle}" in again.stdout
