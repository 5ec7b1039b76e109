"""The whole path on an S3 endpoint: draw, ingest, train, audit, report, all on `s3://`; then 10,000 objects.

    python benchmarks/audit_s3.py                  a quarter of an hour on two cores
    python benchmarks/audit_s3.py --objects 1000   a look

The endpoint is moto's server in a process of its own on the same machine, written in Python: its share of the time is
stated, a real store has none of it here. Requests are counted at the server.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from typing import Any

import audit_lab as lab
import boto3
import faulty_store
import polars as pl
import yaml
from record import record

SIZE, NUM_TRAINING = 128, 160
TRAINING = {
    "router": {"ce_vae_steps": 60, "vaegan_steps": 20, "hidden": 32, "copies": 2},
    "detector": {"epochs": 2},
}


def whole_path(store: faulty_store.Server, num_objects: int) -> dict[str, Any]:
    """Each step as a command against the store; seconds, requests, and what the audit came to."""
    boto3.client("s3", endpoint_url=store.url, **_KEYS).create_bucket(Bucket="lake")
    folder = lab.KEPT / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "train.yaml"
    config.write_text(yaml.safe_dump(TRAINING))
    audit_config = lab.settings_file(folder, gallery_size=4)
    lakes = {"training": NUM_TRAINING, "archive": num_objects}
    draw = "from sbdzsl.datasets import synthetic; synthetic.write_lake('s3://lake/{}', {}, {}, {}, {})"
    steps = {
        f"draw {name}": [sys.executable, "-c", draw.format(name, count, seed, (*lab.SEEN, lab.UNSEEN), SIZE)]
        for seed, (name, count) in enumerate(lakes.items())
    }
    for name in lakes:
        steps[f"ingest {name}"] = [
            *_verb("ingest", "--adapter", "dagm", "--source", f"s3://lake/{name}"),
            *("--out", f"s3://lake/{name}.parquet"),
        ]
    steps["train"] = _verb(
        "train", "--manifest", "s3://lake/training.parquet", "--bundle", "s3://lake/bundle",
        "--unseen", lab.UNSEEN, "--config", str(config),
    )  # fmt: skip
    steps["audit"] = lab.audit_command(
        "s3://lake/bundle", "s3://lake/out", "--manifest", "s3://lake/archive.parquet", "--config", str(audit_config)
    )
    steps["audit again"] = steps["audit"]
    found: dict[str, Any] = {}
    for name, words in steps.items():
        before, began = store.counts(), time.perf_counter()
        done = subprocess.run(
            words, env=lab.environment(**store.environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        seconds, after = time.perf_counter() - began, store.counts()
        requests = {
            method: count - before["requests"].get(method, 0)
            for method, count in after["requests"].items()
            if count > before["requests"].get(method, 0)
        }
        found[name] = {
            "seconds": round(seconds, 1),
            "requests": requests,
            "seconds_in_store": round(after["seconds"] - before["seconds"], 1),
        }
        print(name, found[name], flush=True)
    found["audit"] |= _rows(store) | {"rows_per_second": round(num_objects / found["audit"]["seconds"], 1)}
    return found


_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}


def _verb(*words: str) -> list[str]:
    return [sys.executable, "-m", "sbdzsl.cli", *words]


def _rows(store: faulty_store.Server) -> dict[str, Any]:
    """What is in the store after the audit: rows, ids, and whether the report is there."""
    client = boto3.client("s3", endpoint_url=store.url, **_KEYS)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix="out/")
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    parts = [
        pl.read_parquet(io.BytesIO(client.get_object(Bucket="lake", Key=key)["Body"].read()))
        for key in keys
        if key.startswith("out/parts/")
    ]
    rows = pl.concat(parts)
    errors = rows.filter(pl.col("verdict") == "error").height
    has_report = {"out/report.html", "out/summary.json", "out/alerts.csv"} <= set(keys)
    return {
        "rows": len(rows), "ids": rows["image_id"].n_unique(), "error_rows": errors, "report": has_report
    }  # fmt: skip


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000)
    num_objects = parser.parse_args().objects
    with faulty_store.running() as store:
        found = whole_path(store, num_objects)
    record("audit_s3", {"objects": num_objects, "side": SIZE, "steps": found})


if __name__ == "__main__":
    main()
