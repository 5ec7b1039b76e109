import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import deltalake
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from sbdzsl.errors import ConfigError, LakeError
from sbdzsl.lake import delta, store
from sbdzsl.verdict import SCHEMA_VERSION, VERDICT_SCHEMA, Region, Verdict, to_parquet
from tests.stores import s3, s3_apart, s3_endpoint  # noqa: F401  fixtures


def write_parts(folder, run: int, shards: int = 3) -> pyarrow.dataset.Dataset:
    """Part files of one run as an audit writes them, and the data set over them alone."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        places = (Region(1, 2, 3, 4, 5, 6.5), Region(7, 8, 9, 10, 11, 12.5))
        rows = [
            Verdict(
                f"{run}-{shard}-{n}", "/a.png", "defect", "sha", "steel", regions=places[:n], class_embedding=(0.5, 1)
            )
            for n in range(2)
        ]
        (folder / f"{run:04d}-{shard:06d}.parquet").write_bytes(to_parquet(rows))
    return pyarrow.dataset.dataset(sorted(folder.glob(f"{run:04d}-*.parquet")), VERDICT_SCHEMA)


@pytest.fixture(params=["local", "s3"])
def table_url(request, tmp_path) -> str:
    return str(tmp_path / "table") if request.param == "local" else f"{request.getfixturevalue('s3_apart')}/table"


def rows(url: str) -> pl.DataFrame:
    return pl.scan_delta(url, storage_options=store.storage_options(url)).sort("image_id").collect()


def commits(url: str) -> int:
    """Number of commits with rows: the first makes the table."""
    return deltalake.DeltaTable(url, storage_options=store.storage_options(url)).version()


class TestAppendRun:
    def test_a_run_is_one_commit_however_often_it_is_asked_for(self, table_url, tmp_path):
        parts = write_parts(tmp_path / "parts", 1)
        assert delta.append_run(parts, table_url, "audit-a", 1) is True
        assert delta.append_run(parts, table_url, "audit-a", 1) is False
        assert commits(table_url) == 1
        found, expected = rows(table_url), pl.from_arrow(parts.to_table()).sort("image_id")
        assert found.select("image_id", "regions", "inspected_at", "class_embedding").equals(
            expected.select("image_id", "regions", "inspected_at", "class_embedding")
        )

    def test_several_runs_and_audits_stand_beside_each_other(self, table_url, tmp_path):
        assert delta.append_run(write_parts(tmp_path / "a", 1), table_url, "audit-a", 1)
        assert delta.append_run(write_parts(tmp_path / "a", 2), table_url, "audit-a", 2)
        assert delta.append_run(write_parts(tmp_path / "b", 3), table_url, "audit-b", 1)
        assert not delta.append_run(write_parts(tmp_path / "a", 1), table_url, "audit-a", 1)
        assert commits(table_url) == 3
        assert rows(table_url)["image_id"].n_unique() == len(rows(table_url)) == 18

    def test_of_calls_at_once_one_commits(self, table_url, tmp_path):
        barrier = threading.Barrier(4)
        for run in range(1, 6):  # the first makes the table as well
            parts = write_parts(tmp_path / "parts", run)

            def call(_: int, run: int = run, parts: pyarrow.dataset.Dataset = parts) -> bool:
                barrier.wait()
                return delta.append_run(parts, table_url, "audit-a", run)

            with ThreadPoolExecutor(4) as pool:
                assert sorted(pool.map(call, range(4))) == [False, False, False, True]
        assert len(rows(table_url)) == 30

    def test_an_older_table_gets_the_columns_that_it_lacks(self, tmp_path):
        url = str(tmp_path / "table")
        old = write_parts(tmp_path / "parts", 1).to_table().drop(["extrapolated"])
        assert delta.append_run(pyarrow.dataset.dataset(old), url, "audit-a", 1)
        assert delta.append_run(write_parts(tmp_path / "parts", 2), url, "audit-a", 2)
        assert rows(url)["extrapolated"].to_list()[:6] == [None] * 6
        assert len(rows(url)) == 12

    def test_a_table_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(LakeError) as caught:
            delta.append_run(write_parts(tmp_path / "parts", 1), str(tmp_path / "file" / "table"), "audit-a", 1)
        assert str(tmp_path / "file" / "table") in caught.value.message

    def test_a_place_that_deltalake_takes_for_impossible(self, tmp_path):
        with pytest.raises(LakeError, match="deltalake cannot use this place") as caught:
            delta.append_run(write_parts(tmp_path / "parts", 1), str(tmp_path / "[x]"), "audit-a", 1)
        assert caught.value.code == "unsupported-store"

    def test_without_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "deltalake", None)
        with pytest.raises(ConfigError, match=r"sbdzsl\[delta\]") as caught:
            delta.append_run(write_parts(tmp_path / "parts", 1), str(tmp_path / "table"), "audit-a", 1)
        assert caught.value.code == "missing-extra"

    def test_memory_does_not_grow_with_the_rows(self, tmp_path):
        numbers = pa.array(np.random.default_rng(0).random(55 * 8192))
        rows = pa.table({"image_id": ["id"] * 8192, "x": pa.FixedSizeListArray.from_arrays(numbers, 55)})
        pq.write_table(rows.cast(pa.schema([("image_id", pa.string()), ("x", pa.list_(pa.float64()))])), tmp_path / "p")
        peaks = [
            int(subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path), str(count)])) for count in (20, 100)
        ]
        assert peaks[1] < peaks[0] + 100_000, peaks  # the rows of the larger run take 360 MB


#: Appends the same part so many times and prints the process's peak in kB.
PEAK = """
import resource, sys
import pyarrow.dataset
from sbdzsl.lake import delta
folder, count = sys.argv[1], int(sys.argv[2])
delta._FILE_BYTES = 10_000_000
delta.append_run(pyarrow.dataset.dataset([f"{folder}/p"] * count), f"{folder}/table-{count}", "a", 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class TestPartsAreOneDataSet:
    """The parts of all runs are read as one table by what people query with, without sbdzsl."""

    def test_polars_duckdb_and_pyarrow_agree(self, tmp_path):
        for run in (1, 2):
            write_parts(tmp_path / "parts", run)
        glob = str(tmp_path / "parts" / "*.parquet")
        by_polars = pl.scan_parquet(glob).sort("image_id").collect()
        by_arrow = pq.read_table(tmp_path / "parts").sort_by("image_id")
        by_duckdb = duckdb.sql(
            f"select image_id, verdict, len(regions) as num_regions from read_parquet('{glob}') order by image_id"
        ).to_arrow_table()
        assert by_polars["image_id"].to_list() == by_arrow["image_id"].to_pylist() == by_duckdb["image_id"].to_pylist()
        assert len(by_polars) == 12
        assert by_polars["regions"].list.len().to_list() == by_duckdb["num_regions"].to_pylist()

    def test_the_version_of_the_schema_is_in_each_file_and_in_the_data_set(self, tmp_path):
        write_parts(tmp_path / "parts", 1)
        expected = {b"sbdzsl_schema": b"verdict", b"version": str(SCHEMA_VERSION).encode()}
        assert pyarrow.dataset.dataset(tmp_path / "parts").schema.metadata == expected
        file = tmp_path / "parts" / "0001-000000.parquet"
        by_duckdb = duckdb.sql(f"select key, value from parquet_kv_metadata('{file}')").fetchall()
        assert expected.items() <= dict(by_duckdb).items()
        assert expected[b"version"].decode() == pl.read_parquet_metadata(file)["version"]
