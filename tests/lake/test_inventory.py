import csv
import gzip
import io
import json
from datetime import datetime, timezone
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbdzsl import lake
from sbdzsl.errors import DataError
from sbdzsl.lake import listing
from tests.lake.test_packed import tar
from tests.stores import s3, s3_endpoint  # noqa: F401  fixtures

COLUMNS = ["Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag"]
PARQUET = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag"]
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
KEYS = ["line1/a b+c.png", "line2/ä#100%20.png", 'line1/,"quoted".png', "notes.txt", "line1/"]

Row = tuple[str, bool, bool, int]  # key, is latest, is delete marker, size
ROWS: list[Row] = [(key, True, False, 10 + index) for index, key in enumerate(KEYS)]
ROWS += [("line1/a b+c.png", False, False, 7), ("gone.png", True, True, 0)]


def write_report(bucket: str, form: str, files: list[list[Row]], columns: list[str] | None = None) -> str:
    """A report as S3 writes it, beside what it lists; returns the URL of its manifest.json."""
    listed = []
    for number, rows in enumerate(files):
        suffix = {"CSV": "csv.gz", "Parquet": "parquet"}[form]
        key = f"inv/{bucket}/daily/data/{number}.{suffix}"
        lake.write_bytes(f"s3://{bucket}/{key}", {"CSV": as_csv, "Parquet": as_parquet}[form](bucket, rows, columns))
        listed.append({"key": key, "size": 1, "MD5checksum": "x"})
    report = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": ", ".join(columns or COLUMNS) if form == "CSV" else "message s3.inventory { ... }",
        "files": listed,
    }
    uri = f"s3://{bucket}/inv/{bucket}/daily/2026-01-03T00-00Z/manifest.json"
    lake.write_bytes(uri, json.dumps(report).encode())
    return uri


def as_csv(bucket: str, rows: list[Row], columns: list[str] | None) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for key, latest, deleted, size in rows:
        etag, when = ("", "") if deleted else (f"etag-{size}", "2026-01-02T03:04:05.000Z")
        values = [bucket, quote_plus(key, safe="/"), "v", str(latest).lower(), str(deleted).lower(), size, when, etag]
        named = dict(zip(COLUMNS, values, strict=True))
        writer.writerow([named[column] for column in columns or COLUMNS])
    return gzip.compress(text.getvalue().encode())


def as_parquet(bucket: str, rows: list[Row], columns: list[str] | None) -> bytes:
    keys, latest, deleted, sizes = (list(values) for values in zip(*rows, strict=True))
    count = len(rows)
    values = [[bucket] * count, keys, ["v"] * count, latest, deleted, sizes, [WHEN] * count]
    values.append([f"etag-{size}" for size in sizes])
    table = pa.table(dict(zip(PARQUET, values, strict=True)))
    table = table.set_column(6, PARQUET[6], table[PARQUET[6]].cast(pa.timestamp("ms", tz="UTC")))
    stream = io.BytesIO()
    pq.write_table(table.select(columns) if columns else table, stream)
    return stream.getvalue()


def listed(source: str, out: str, **options) -> tuple[listing.Listing, list[dict]]:
    found = listing.list_lake(source, out, workers=2, report=lambda _: None, **options)
    rows = [row for page in lake.manifest_pages(out) for row in page.to_pylist()]
    return found, sorted(rows, key=lambda row: row["uri"])


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_latest_versions_are_listed_with_their_keys_decoded(s3, tmp_path, form):  # noqa: F811
    uri = write_report(s3[5:], form, [ROWS[:3], ROWS[3:]])
    found, rows = listed(uri, str(tmp_path / "out"))
    assert [row["uri"] for row in rows] == sorted(f"{s3}/{key}" for key in KEYS[:3])
    by_key = {row["uri"][len(s3) + 1 :]: row for row in rows}
    first = by_key["line1/a b+c.png"]
    assert (first["size_bytes"], first["etag"], first["modified_at"]) == (10, "etag-10", WHEN)
    assert first["image_id"] == lake.image_id(f"{s3}/line1/a b+c.png", "etag-10")
    assert found.num_bytes == 10 + 11 + 12
    assert found.left_out == {"without an image's suffix": 1, "old version": 1, "deleted (a delete marker)": 1}
    assert found.num_requests >= 2


def test_globs_are_relative_to_the_bucket(s3, tmp_path):  # noqa: F811
    uri = write_report(s3[5:], "CSV", [ROWS])
    _, rows = listed(uri, str(tmp_path / "out"), include=["line2/**"])
    assert [row["uri"] for row in rows] == [f"{s3}/{KEYS[1]}"]


def test_an_image_has_one_id_by_inventory_and_by_listing(s3, tmp_path):  # noqa: F811
    lake.write_bytes(f"{s3}/lake/a.png", b"1")
    _, (direct,) = listed(f"{s3}/lake", str(tmp_path / "direct"))
    uri = write_report(s3[5:], "CSV", [[("lake/a.png", True, False, 1)]])
    data = f"{s3}/inv/{s3[5:]}/daily/data/0.csv.gz"
    text = gzip.decompress(lake.read_bytes(data)).replace(b"etag-1", direct["etag"].encode())
    lake.write_bytes(data, gzip.compress(text))
    _, (by_inventory,) = listed(uri, str(tmp_path / "inventory"))
    assert by_inventory["image_id"] == direct["image_id"]


@pytest.mark.parametrize(("form", "columns"), [("CSV", ["Bucket", "Key"]), ("Parquet", ["bucket", "key"])])
def test_a_report_with_keys_alone(s3, tmp_path, form, columns):  # noqa: F811
    uri = write_report(s3[5:], form, [ROWS[:2]], columns)
    found, rows = listed(uri, str(tmp_path / "out"))
    assert [(row["size_bytes"], row["etag"], row["modified_at"]) for row in rows] == [(None, None, None)] * 2
    assert found.num_bytes == 0


def test_archives_in_the_report_are_opened(s3, tmp_path):  # noqa: F811
    lake.write_bytes(f"{s3}/lots/7.tar", tar({"a.png": b"a"}))
    uri = write_report(s3[5:], "Parquet", [[("lots/7.tar", True, False, 10240)]])
    _, rows = listed(uri, str(tmp_path / "out"))
    assert [lake.read_bytes(row["uri"]) for row in rows] == [b"a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fileFormat": "ORC"}, "the report is ORC; CSV and Parquet are read"),
        ({"fileSchema": "Bucket, Size"}, "no column Key"),
        ({"files": None}, "no manifest.json of an S3 Inventory report"),
    ],
)
def test_a_report_that_is_not_read_says_why(s3, tmp_path, change, reason):  # noqa: F811
    uri = write_report(s3[5:], "CSV", [ROWS])
    lake.write_bytes(uri, json.dumps(json.loads(lake.read_bytes(uri)) | change).encode())
    with pytest.raises(DataError, match=reason) as caught:
        listed(uri, str(tmp_path / "out"))
    assert caught.value.code == "bad-manifest"


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b'"one","two"\n')])
def test_a_data_file_of_another_form_is_named(s3, tmp_path, data):  # noqa: F811
    uri = write_report(s3[5:], "CSV", [ROWS])
    lake.write_bytes(f"{s3}/inv/{s3[5:]}/daily/data/0.csv.gz", data)
    with pytest.raises(DataError, match=r"data/0\.csv\.gz") as caught:
        listed(uri, str(tmp_path / "out"))
    assert caught.value.code == "bad-manifest"
