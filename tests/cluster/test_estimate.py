from pathlib import Path

import pytest

from sbdzsl import lake
from sbdzsl.cluster.estimate import Estimate, estimate_audit
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.config import AuditSettings, PriceSettings
from sbdzsl.errors import ConfigError
from tests.conftest import Trained

PRICES = PriceSettings(currency="EUR", get_per_1000=0.4, put_per_1000=5.0, read_per_gb=0.5, cpu_hour=0.25)


def test_time_and_money_follow_from_counts_and_prices() -> None:
    found = Estimate(
        num_images=3_600_000,
        num_bytes=2 * 10**12,
        num_reads=4_000_000,
        num_writes=10_000,
        seconds_an_image=0.02,
        num_timed=32,
        num_actors=10,
        prices=PRICES,
    )
    assert found.hours == pytest.approx(2.0, abs=0.01)
    assert found.money == pytest.approx(1600 + 50 + 1000 + 20 * 0.25)
    said = {name: value for name, value, _ in found.rows()}
    assert said["images"] == "3,600,000"
    assert said["bytes"] == "2,000.000 GB"
    assert said["time"] == "2 h 00 min"
    assert said["cost"] == "2,655.00 EUR"


def test_a_lake_is_listed_and_some_of_it_is_judged_and_nothing_is_written(trained: Trained, tmp_path: Path) -> None:
    folder = Path(trained.manifest["uri"][0].as_py()).parents[2]
    files = [path for path in folder.rglob("*") if path.suffix.lower() == ".png"]
    settings = AuditSettings(actors=3, shard_size=10, prices=PRICES)
    request = AuditRequest(trained.bundle_url, str(tmp_path / "out"), lake_url=str(folder), settings=settings)
    found = estimate_audit(request, report=lambda _: None)
    assert found.num_images == len(files)
    assert found.num_bytes == sum(path.stat().st_size for path in files)
    assert found.num_reads >= len(files)
    assert (found.num_timed, found.num_actors) == (32, 3)
    assert 0 < found.seconds_an_image < 5
    assert not (tmp_path / "out").exists()


def test_a_selection_is_estimated_as_it_would_be_judged(trained: Trained, tmp_path: Path) -> None:
    manifest = str(tmp_path / "manifest.parquet")
    lake.write_manifest(trained.manifest.slice(0, 9), manifest)
    request = AuditRequest(
        trained.bundle_url, str(tmp_path / "out"), manifest_uri=manifest, settings=AuditSettings(limit=5)
    )
    found = estimate_audit(request, report=lambda _: None)
    assert (found.num_images, found.num_timed) == (5, 1)
    empty = AuditRequest(
        trained.bundle_url, str(tmp_path / "out"), manifest_uri=manifest, settings=AuditSettings(sample=1e-9)
    )
    with pytest.raises(ConfigError, match="no image is left"):
        estimate_audit(empty, report=lambda _: None)
