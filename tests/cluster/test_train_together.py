"""One surface trained by several workers of a real cluster, beside others that one worker each trains."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl.cluster.train import train_on_cluster
from sbdzsl.config import ClusterSettings
from sbdzsl.errors import ConfigError, TrainingError
from tests.cluster.test_train import training_workers, with_few_images
from tests.conftest import SEEN, SMALL, UNSEEN, Trained

WIDE = max(SEEN)


def spread(surface: str, workers: int) -> ClusterSettings:
    return ClusterSettings(cpus_per_worker=1.0, gpus_per_worker=0.0, workers_per_surface={surface: workers})


@pytest.mark.ray
@pytest.mark.slow
def test_a_surface_is_trained_by_two_workers_of_which_one_is_killed(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    lines: list[str] = []
    killed: list[int] = []

    def kill_one(line: str) -> None:
        lines.append(line)
        if not killed and line.startswith(f"[3/3] {WIDE}: "):  # read, and about to be trained
            killed.append(training_workers()[-1])
            os.kill(killed[0], signal.SIGKILL)

    bundle = train_on_cluster(
        trained.manifest, str(tmp_path / "b"), SMALL, spread(WIDE, 2), unseen=(UNSEEN,), report=kill_one
    )
    assert f"training {WIDE} together by 2 workers of 1 CPU, on cpu" in lines
    assert "training 2 surfaces by 2 workers of 1 CPU, on cpu" in lines
    assert f"{WIDE}: 2 workers train it together" in lines
    assert killed, "no training was seen that could be disturbed"
    assert any(line.startswith(f"{WIDE}: its process died") for line in lines), lines
    ours, theirs = bundle.card["files"], trained.bundle.card["files"]
    wide = f"detectors/{WIDE}.safetensors"
    assert [name for name in theirs if ours[name] != theirs[name]] == [wide], "its features and all others are the same"
    loaded = bundles.load(str(tmp_path / "b"))
    assert loaded.detectors[WIDE].validation_ap == pytest.approx(trained.bundle.detectors[WIDE].validation_ap, abs=0.1)


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_team_cannot_train_fails_once_and_says_why(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    """The group that Ray starts again after the error finds nothing to do."""
    lines: list[str] = []
    manifest, others = with_few_images(trained.manifest, WIDE), (set(SEEN) | {UNSEEN}) - {WIDE}
    with pytest.raises(
        TrainingError, match=f"1 of 1 surfaces .*\n  {WIDE}: too-few-images: .*3 readable training"
    ) as caught:
        train_on_cluster(
            manifest, str(tmp_path / "b"), SMALL, spread(WIDE, 2), unseen=sorted(others), report=lines.append
        )
    assert caught.value.code == "surfaces-failed"
    assert sum(line.startswith(f"{WIDE} failed: ") for line in lines) == 1
    assert sum("2 workers train it together" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("surface", "workers", "words"),
    [
        (UNSEEN, 2, f"names '{UNSEEN}', expected surfaces to train: {', '.join(sorted(SEEN))}"),
        (WIDE, 9, "asks for 9 workers for perforated_sheet, whose batches have 8 images: ask for 8 at most"),
    ],
)
def test_workers_that_have_nothing_to_train_are_refused(
    trained: Trained, tmp_path: Path, surface: str, workers: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train_on_cluster(
            trained.manifest, str(tmp_path / "b"), SMALL, spread(surface, workers), unseen=(UNSEEN,), report=print
        )
