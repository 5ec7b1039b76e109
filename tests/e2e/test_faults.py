"""What an audit meets in the field, as short runs of `benchmarks/audit_faults.py`: kills, a bad store, a full disk."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import audit_faults
import audit_hostile
import audit_lab
import hostile_images
import polars as pl
import pytest

from sbdzsl import lake
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def copies(trained: Trained, folder: Path, count: int) -> str:
    """A manifest that names each image that many times, under ids of their own."""
    rows = trained.manifest.to_pylist()
    many = [row | {"image_id": f"{row['image_id']}-{copy}"} for copy in range(count) for row in rows]
    uri = str(folder / "many.parquet")
    lake.write_manifest(type(trained.manifest).from_pylist(many, schema=trained.manifest.schema), uri)
    return uri


def test_kills_lose_and_double_nothing(trained: Trained, tmp_path: Path) -> None:
    manifest = copies(trained, tmp_path, 4)
    plan = [("actor", 0.55), ("driver", 0.1), ("actor", 0.5)]
    settings: dict[str, object] = {"shard_size": 20, "gallery_size": 0}
    found = audit_faults.kill(plan, tmp_path, trained.bundle_url, manifest, settings, 1, 2, lambda _: None)
    assert found.rows == 4 * len(trained.manifest)
    assert (found.lost, found.doubled, found.different, found.parts_rewritten) == (0, 0, 0, 0)
    assert found.kills == {"actor": 2, "driver": 1}
    assert found.restarts >= 1


def test_a_store_that_spoils_its_answers_changes_no_row(trained: Trained, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for row in trained.manifest.to_pylist()[:60]:
        shutil.copy(row["uri"], images / f"{row['image_id'][:12]}.png")
    settings: dict[str, object] = {"shard_size": 15, "gallery_size": 2}
    found = audit_faults.spoil(tmp_path / "audits", trained.bundle_url, images, settings, 0.08, 4)
    assert (found["rows"], found["error_rows"], found["different"]) == (60, 0, 0)
    assert sum(found["faults"].values()) > 5


def test_mutated_images_and_bombs_are_one_row_each(trained: Trained, tmp_path: Path) -> None:
    # Those that truly unpack to 100 megapixels are judged, which takes a minute: the benchmark has them.
    bombs = [bomb for bomb in hostile_images.bombs() if "to-100-megapixels" not in bomb[0]]
    files = [*hostile_images.mutated(100, 5), *bombs]
    found = audit_hostile.judge(tmp_path, trained.bundle_url, files)
    assert (found["exit_code"], found["rows"], found["lost"], found["doubled"]) == (0, len(files), 0, 0)
    assert found["bombs"]["claims-4e18-pixels.png"] == "too-large"
    assert found["peak_mb"]["actor"]["own"] < 1500


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_within_seconds_and_leaves_nothing_running(
    trained: Trained, tmp_path: Path, sent: signal.Signals
) -> None:
    manifest, out = copies(trained, tmp_path, 12), tmp_path / "out"
    config = audit_lab.settings_file(tmp_path, shard_size=20, gallery_size=0)
    words = audit_lab.audit_command(trained.bundle_url, out, "--manifest", manifest, "--config", str(config))
    process = subprocess.Popen(
        words, env=audit_lab.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = audit_lab.descendants(process.pid)
    assert len(started) > 5
    # A terminal sends Ctrl-C to all processes of the group; a scheduler ends the one that it started.
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    interrupted = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert time.monotonic() - interrupted < 20, "Ray takes 2 s to go on a quiet machine"
    time.sleep(2)
    assert [audit_lab.name_of(pid) for pid in started if Path(f"/proc/{pid}/cmdline").exists()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small file system, so there is no full disk to be had")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_is_named_and_the_audit_goes_on_once_there_is_room(
    trained: Trained, small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    config = audit_lab.settings_file(tmp_path, shard_size=16, gallery_size=0)
    words = audit_lab.audit_command(
        trained.bundle_url, out, "--manifest", trained.manifest_uri, "--config", str(config)
    )

    def audit() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=audit_lab.environment(), capture_output=True, text=True, timeout=300, check=False
        )

    filler = small_disk / "filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 200_000))
    failed = audit()
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "error: disk-full" in failed.stderr
    assert "make room" in failed.stderr
    for part in out.glob("parts/*"):
        assert pl.read_parquet(part).height == 16, "a broken part was left"
    filler.unlink()
    assert (done := audit()).returncode == 0, done.stdout + done.stderr
    assert sorted(audit_lab.rows_of(out)["image_id"]) == sorted(trained.manifest["image_id"].to_pylist())
