"""Rate of listing: a local lake of tiny files, a bucket on a local S3 server, the members of one TAR file.

    python benchmarks/audit_listing.py          about five minutes on two cores

The S3 server (moto) is written in Python and shares the machine: its row says that pages stream and how many requests
there are, not how fast a store is. Peak memory is that of the process that lists, beyond its imports.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record

FILES_A_FOLDER = 1000


def write_files(folder: Path, count: int) -> None:
    for number in range(count):
        if number % FILES_A_FOLDER == 0:
            below = folder / f"line{number // FILES_A_FOLDER % 10}" / f"lot{number // FILES_A_FOLDER:04d}"
            below.mkdir(parents=True)
        (below / f"{number:07d}.png").write_bytes(b"x")


def write_archive(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"lot/{number:07d}.png")
            info.size, info.mtime = 1, 1_700_000_000
            archive.addfile(info, io.BytesIO(b"x"))


def write_objects(bucket: str, count: int) -> None:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    for number in range(count):
        client.put_object(Bucket=bucket, Key=f"lot{number // FILES_A_FOLDER:04d}/{number:07d}.png", Body=b"x")


def serve_s3(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """An S3 server in a process of its own, and the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "server.log").open("wb")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return server, dict.fromkeys(names, "testing") | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def measure(source: str, out: str) -> dict[str, Any]:
    """One listing in this process."""
    from sbdzsl.lake import listing

    before = _peak_mb()
    started = time.perf_counter()
    found = listing.list_lake(source, out, report=lambda _: None)
    seconds = time.perf_counter() - started
    return {
        "images": found.num_images,
        "seconds": round(seconds, 2),
        "images_per_second": round(found.num_images / seconds),
        "requests": found.num_requests,
        "peak_mb": round(_peak_mb() - before),
    }


def _peak_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6


def in_process(source: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--source", source, "--out", str(out)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    """Build the three lakes, list each three times, record the median run of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000, help="local files, and members of the archive")
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.source:
        print(json.dumps(measure(words.source, words.out)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, environment = serve_s3(folder)
        try:
            os.environ.update(environment)
            write_files(folder / "lake", words.images)
            write_archive(folder / "lot.tar", words.images)
            write_objects("lake", words.objects)
            sources = {"local folder": f"{folder}/lake", "TAR file": f"{folder}/lot.tar", "S3 (moto)": "s3://lake"}
            rows = []
            for kind, source in sources.items():
                runs = [in_process(source, folder / f"{kind}-{turn}") for turn in range(3)]
                middle = sorted(runs, key=lambda run: run["seconds"])[1]
                spread = [run["images_per_second"] for run in runs]
                rows.append({"lake": kind, **middle, "images_per_second_of_each_run": spread})
                print(rows[-1], flush=True)
        finally:
            server.kill()
            server.wait()
    record("audit_listing", {"lakes": rows})


if __name__ == "__main__":
    main()
