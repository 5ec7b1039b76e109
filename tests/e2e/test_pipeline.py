"""The pipeline as a job on a real cluster, killed for real; and a worse bundle that its gate refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sbdzsl import bundle as bundles
from sbdzsl import cli
from sbdzsl.registry import Registry
from tests.conftest import SEEN, SMALL, UNSEEN, Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]


def test_killed_three_times_it_ends_in_the_same_bundle_promoted_once(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, registry = tmp_path / "run", Registry(str(tmp_path / "registry"))
    settings = {
        "manifests": [trained.manifest_uri],
        "unseen": [UNSEEN],
        "train": SMALL.model_dump(exclude_defaults=True),
        "promotion": {"registry": registry.url},
        "cluster": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", str(tmp_path / "pipeline.yaml"), "--by", "anna"]
    command = [
        sys.executable,
        str(REPOSITORY / "jobs" / "pipeline.py"),
        *words,
        "--out",
        str(run),
        "--address",
        "local",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)

    killed_at(lambda: bool(list(run.glob("bundle/training/*.trained"))), command, environment)
    assert not bundles.exists(str(run / "bundle"))
    # Where it trains is not its business: the second start goes on without a cluster.
    here = [sys.executable, "-m", "sbdzsl.cli", "pipeline", *words, "--out", str(run)]
    killed_at(lambda: bool(list(run.glob("steps/train-*.json"))), here, environment)
    assert not list(run.glob("steps/evaluate-*.json")), "the kill came too late to show anything"
    killed_at(lambda: bool(registry.history("production")), here, environment)
    last = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stdout + last.stderr
    for step in ("train", "evaluate"):
        assert f"{step}: done already" in last.stdout
    assert bundles.load(str(run / "bundle")).digest == trained.bundle.digest
    assert not list(run.glob("bundle/training/*.trained")), "what only an unfinished training needs is gone"
    (record,) = registry.history("production")
    assert (record.bundle, record.by) == (trained.bundle.digest, "anna")
    report = (run / "report.html").read_text()
    assert report.count('aria-label="Losses and validation AP over the epochs"') == len(SEEN)

    worse = {**settings, "train": {"router": SMALL.router.model_dump(), "detector": {"epochs": 1, "start": "random"}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(worse))
    assert cli.main(["pipeline", *words, "--out", str(tmp_path / "worse")]) == 3
    said = capfd.readouterr()
    assert "gate-refused: mean_ap is worse by" in said.err
    assert "refused" in said.out
    assert registry.history("production") == (record,)
    assert "Refused by the gate" in (tmp_path / "worse" / "report.html").read_text()


def killed_at(moment: Callable[[], bool], command: list[str], environment: dict[str, str]) -> None:
    """Start the job and kill it, with all that it has started, as soon as `moment` has come."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not moment():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "the moment did not come in five minutes"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
