"""Kill an audit at random, spoil its store: is every image there once, with the verdict of an undisturbed audit?

    python benchmarks/audit_faults.py                    50 kills on a cluster of three raylets, half an hour
    python benchmarks/audit_faults.py --kills 5 --seed 2
    python benchmarks/audit_faults.py --store            an audit over a store that spoils one request in twenty

Kills are SIGKILL, at seeded moments: of an actor, of another worker process of Ray's, of the driver, of a raylet with
all on it. A driver that was killed, or a command that failed, is run again with the same words until it ends well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import audit_lab as lab
import faulty_store
import polars as pl

from sbdzsl import lake

KINDS = ("actor", "worker", "driver", "raylet")
#: How often each is killed; a raylet takes half a minute to be missed and replaced.
WEIGHTS = (0.4, 0.1, 0.35, 0.15)
SIZE, NUM_IMAGES, SHARD_SIZE, KILLS_PER_AUDIT = 256, 1500, 50, 5
#: What a verdict row says that does not depend on when and where it was judged.
SAME = ("image_id", "uri", "verdict", "surface", "unseen_score", "defect_score", "error_code")
STUDY = "audit_faults"


@dataclass
class Found:
    """What kills did to audits, added up."""

    kills: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    restarts: int = 0
    failures: int = 0  # commands that ended badly without being killed
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    shards: int = 0
    shards_repeated: int = 0
    parts_rewritten: int = 0
    leftovers: int = 0  # temporary files of writers that were killed; no reader takes them for parts

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class PartWatch:
    """Looks at the parts of an audit again and again: a part that changes after it appeared was written twice."""

    def __init__(self, out: Path) -> None:
        self.rewritten: set[str] = set()
        self._out, self._seen = out, dict[str, tuple[int, int, int]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PartWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self._look()

    def _look(self) -> None:
        for part in self._out.glob("parts/*.parquet"):
            status = part.stat()
            now = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._seen.setdefault(part.name, now) != now:
                self.rewritten.add(part.name)


@contextlib.contextmanager
def nodes(num_raylets: int, cpus: int) -> Iterator[Any]:
    """A cluster of this machine: a head without CPUs for drivers, and raylets of `cpus` each that can be lost."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **small})
    try:
        for _ in range(num_raylets):
            cluster.add_node(num_cpus=cpus, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


class Killing:
    """Audits on one cluster, disturbed by a plan of kills."""

    def __init__(self, cluster: Any, cpus: int, command: Callable[[Path], list[str]], longest_s: float) -> None:
        self._cluster, self._cpus, self._command, self._longest_s = cluster, cpus, command, longest_s
        self.found = Found()

    def audit(self, out: Path, kills: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        """One audit with kills: each a kind and the share of an undisturbed audit's time to wait before it.

        Returns the kills that were not dealt, since the audit had ended before.
        """
        self.found.audits += 1
        waiting = list(kills)
        with PartWatch(out) as parts:
            process = self._start(out)
            while True:
                while waiting and self._dealt(*waiting[0], process):
                    self.found.kills[waiting.pop(0)[0]] += 1
                code = process.wait(timeout=900)
                if code == 0:
                    break
                self.found.failures += code > 0
                self.found.restarts += 1
                assert self.found.restarts < 500, f"{out} never ends"
                process = self._start(out)
        self.found.parts_rewritten += len(parts.rewritten)
        return waiting

    def _dealt(self, kind: str, share: float, process: subprocess.Popen[bytes]) -> bool:
        """Wait, then kill as soon as there is something of this kind; False if the command has ended before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(share * self._longest_s)
        while process.poll() is None:
            if self._kill(kind, process):
                return True
            time.sleep(0.2)
        return False

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        log = out.with_suffix(".log").open("ab")
        return subprocess.Popen(self._command(out), env=lab.environment(), stdout=log, stderr=log)

    def _kill(self, kind: str, process: subprocess.Popen[bytes]) -> bool:
        """Whether there was something of this kind to kill."""
        if kind == "driver":
            process.kill()
            process.wait()
            return True
        if kind == "raylet":
            raylets = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)
            lost = raylets[len(raylets) // 2]
            self._cluster.remove_node(lost, allow_graceful=False)
            self._cluster.add_node(num_cpus=self._cpus, object_store_memory=80 * 2**20)
            return True
        victims = [pid for pid in lab.descendants(os.getpid()) if lab.name_of(pid) == kind]
        if not victims:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[len(victims) // 2], signal.SIGKILL)
        return True

    def check(self, out: Path, manifest: pl.Series, truth: pl.DataFrame) -> None:
        """Add up what an ended audit has, against the ids it should have and an undisturbed audit's rows."""
        found, rows = self.found, lab.rows_of(out, SAME)
        found.rows += len(rows)
        found.lost += len(set(manifest) - set(rows["image_id"]))
        found.doubled += len(rows) - rows["image_id"].n_unique()
        if len(rows) == len(truth):
            found.different += sum(a != b for a, b in zip(rows.rows(), truth.rows(), strict=True))
        found.shards += len(list(out.glob("parts/*.parquet")))
        starts = [len(list(shard.iterdir())) for shard in out.glob("runs/*/started/*")]
        found.shards_repeated += sum(count > 1 for count in starts)
        found.leftovers += len(list(out.glob("parts/.*")))


def plan_of_kills(num_kills: int, seed: int) -> list[tuple[str, float]]:
    """Kinds, each with its wait: up to two thirds of what an undisturbed audit takes."""
    rng = random.Random(seed)
    return [(rng.choices(KINDS, WEIGHTS)[0], rng.uniform(0.05, 0.65)) for _ in range(num_kills)]


def kill(
    plan: Sequence[tuple[str, float]],
    folder: Path,
    bundle: Path | str,
    manifest: Path | str,
    settings: dict[str, object],
    raylets: int,
    cpus: int,
    report: Callable[[dict[str, Any]], None],
) -> Found:
    """An undisturbed audit, then one after the other with kills; `report` gets the sums after each."""
    file = lab.settings_file(folder, **settings)
    wanted = pl.read_parquet(manifest, columns=["image_id"])["image_id"]
    with nodes(raylets, cpus) as cluster:

        def command(out: Path) -> list[str]:
            more = ("--manifest", str(manifest), "--config", str(file), "--address", cluster.address)
            return lab.audit_command(bundle, out, *more)

        began = time.monotonic()
        subprocess.run(command(folder / "truth"), env=lab.environment(), check=True, stdout=subprocess.DEVNULL)
        killing = Killing(cluster, cpus, command, time.monotonic() - began)
        truth = lab.rows_of(folder / "truth", SAME)
        waiting = list(plan)
        while waiting:
            out = folder / f"killed-{killing.found.audits:02d}"
            waiting = killing.audit(out, waiting[:KILLS_PER_AUDIT]) + waiting[KILLS_PER_AUDIT:]
            killing.check(out, wanted, truth)
            report(killing.found.figures())
    return killing.found


def spoil(
    folder: Path, bundle: Path | str, images: Path, settings: dict[str, object], share: float, seed: int
) -> dict[str, Any]:
    """One audit on a store that is well and one on a store that spoils a share of its answers: their rows, compared."""
    file = lab.settings_file(folder, **settings)
    rows, counts, restarts = {}, {}, 0
    for name, spoilt in (("well", 0.0), ("spoilt", share)):
        with faulty_store.running(spoilt, seed) as store:
            environment = lab.environment(**store.environment)
            _upload(images, store)
            out = folder / name
            # Judged on the store, verdicts too: reading, listing, plan, parts and report all meet its faults.
            words = lab.audit_command(bundle, f"s3://lake/{name}", "--lake", "s3://lake/images", "--config", str(file))
            while subprocess.run(words, env=environment, check=False, stdout=subprocess.DEVNULL).returncode:
                restarts += 1
                assert restarts < 20, "the audit never ends well"
            _download(f"{name}/parts", out / "parts", store)
            counts[name] = store.counts()
        rows[name] = lab.rows_of(out, SAME).with_columns(pl.col("uri").str.split("/").list.last()).drop("image_id")
    well, spoilt_rows = (rows[name].sort("uri") for name in ("well", "spoilt"))
    return {
        "rows": len(spoilt_rows),
        "images": len(well),
        "error_rows": spoilt_rows.filter(pl.col("verdict") == "error").height,
        "different": sum(a != b for a, b in zip(well.rows(), spoilt_rows.rows(), strict=True)),
        "commands_run_again": restarts,
        "requests": counts["spoilt"]["requests"],
        "faults": counts["spoilt"]["faults"],
    }


def _client(store: faulty_store.Server) -> Any:
    import boto3
    from botocore.config import Config

    retries = Config(retries={"total_max_attempts": 10})
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=store.url, config=retries, **keys)


def _upload(images: Path, store: faulty_store.Server) -> None:
    client = _client(store)
    client.create_bucket(Bucket="lake")
    for file in sorted(images.iterdir()):
        client.put_object(Bucket="lake", Key=f"images/{file.name}", Body=file.read_bytes())


def _download(prefix: str, folder: Path, store: faulty_store.Server) -> None:
    client = _client(store)
    folder.mkdir(parents=True)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix):
        for item in page.get("Contents", []):
            for _ in range(10):
                with contextlib.suppress(Exception):
                    body = client.get_object(Bucket="lake", Key=item["Key"])["Body"].read()
                    (folder / item["Key"].rsplit("/", 1)[1]).write_bytes(body)
                    break
            else:
                raise AssertionError(f"{item['Key']} cannot be read")


def main() -> None:
    """Run, print, record after each audit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", action="store_true")
    given = parser.parse_args()
    folder, bundle = lab.KEPT / "faults", lab.quick_bundle(SIZE)
    shutil.rmtree(folder, ignore_errors=True)
    manifest = lab.image_manifest(lab.drawn_lake(NUM_IMAGES, SIZE))
    if given.store:
        images = folder / "images"
        images.mkdir(parents=True)
        for row in lake.read_manifest(str(manifest)).to_pylist()[::3]:
            shutil.copy(row["uri"], images / f"{row['image_id'][:12]}.png")
        found = spoil(folder, bundle, images, {"shard_size": 20, "gallery_size": 4}, 0.05, given.seed)
        print(found)
        lab.extend_record(STUDY, "store", found | {"seed": given.seed, "share": 0.05})
        return
    began = time.monotonic()

    def report(figures: dict[str, Any]) -> None:
        minutes = round((time.monotonic() - began) / 60, 1)
        print(minutes, figures, flush=True)
        lab.extend_record(STUDY, "kills", {"asked_for": given.kills, "seed": given.seed, "minutes": minutes} | figures)

    settings = {"shard_size": SHARD_SIZE, "gallery_size": 0}
    kill(plan_of_kills(given.kills, given.seed), folder, bundle, manifest, settings, 3, 1, report)


if __name__ == "__main__":
    main()
