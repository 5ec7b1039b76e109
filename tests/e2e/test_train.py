"""A training killed for real, and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import SEEN, SMALL, UNSEEN, Trained


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
