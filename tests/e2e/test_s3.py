"""On an S3 endpoint: ingest to report as `benchmarks/audit_s3.py` in small, training on a cluster, the pipeline."""

import re
import subprocess
import sys
from pathlib import Path

import audit_lab
import audit_s3
import faulty_store
import pytest
import yaml

from tests.conftest import SMALL, UNSEEN, Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_whole_path_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_lab, "KEPT", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with faulty_store.running() as store:
        steps = audit_s3.whole_path(store, 48)
    audit = steps["audit"]
    assert (audit["rows"], audit["ids"], audit["error_rows"], audit["report"]) == (48, 48, 0, True)
    # Finished, it reads no image and writes no part again.
    assert steps["audit again"]["requests"].get("PUT", 0) < 10
    assert steps["audit again"]["requests"].get("GET", 0) < audit["requests"]["GET"]


def test_a_training_on_a_cluster_writes_its_bundle_to_s3(trained: Trained, tmp_path: Path) -> None:
    """What the workers bring goes through the store; nothing but the bundle and how its nets learnt stays there."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL.model_dump(exclude_defaults=True)))
    words = ["--manifest", trained.manifest_uri, "--unseen", UNSEEN, "--config", str(tmp_path / "small.yaml")]
    words += ["--cluster-config", "{workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}", "--address", "local"]
    command = [sys.executable, "-m", "sbdzsl.cli", "train", "--cluster", *words, "--bundle", "s3://lake/trained"]
    list_it = "from sbdzsl import lake; fs, path = lake.filesystem('s3://lake/trained/training'); print(*fs.find(path))"
    with faulty_store.running() as store:
        environment = audit_lab.environment(OMP_NUM_THREADS="1", **store.environment)
        environment.pop("RAY_ADDRESS", None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"bundle {trained.bundle.digest[:16]} -> s3://lake/trained" in done.stdout
        left = subprocess.run([sys.executable, "-c", list_it], env=environment, capture_output=True, text=True)
    assert {name.rpartition(".")[2] for name in left.stdout.split()} == {"json", "png"}, left.stdout + left.stderr


def test_a_pipeline_on_s3_promotes_once(trained: Trained, tmp_path: Path) -> None:
    """Run folder and registry in the store; by the same command once more nothing is done anew."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"train": SMALL.model_dump(exclude_defaults=True)}))
    sbdzsl = [sys.executable, "-m", "sbdzsl.cli"]
    words = ["--manifest", trained.manifest_uri, "--unseen", UNSEEN, "--config", str(tmp_path / "small.yaml")]
    words += ["--out", "s3://lake/run", "--registry", "s3://lake/registry", "--by", "anna"]
    list_it = "from sbdzsl import lake; fs, path = lake.filesystem('s3://lake/run'); print(*fs.find(path))"
    with faulty_store.running() as store:
        environment = audit_lab.environment(OMP_NUM_THREADS="1", **store.environment)

        def run(*command: str) -> str:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run(sys.executable, "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='lake')")
        first = run(*sbdzsl, "pipeline", *words)
        assert "train: done already" not in first
        again = run(*sbdzsl, "pipeline", *words)
        assert "train: done already" in again
        listed = run(*sbdzsl, "registry", "list", "--registry", "s3://lake/registry")
        run(*sbdzsl, "registry", "verify", "--registry", "s3://lake/registry")
        left = run(sys.executable, "-c", list_it).split()
    assert re.search(rf"{trained.bundle.digest[:12]}… +│ +production", listed), listed
    names = {name.partition("run/")[2] for name in left}
    assert {"report.html", "evaluation/figures.json", "bundle/bundle.json"} <= names
    assert sum(name.startswith("steps/promote-") for name in names) == 1, names
