"""What the studies of the audit share: drawn images and a quick bundle, kept; the command line; memory of processes.

Nothing of the audit's inside is used: it is started as a user starts it, and watched from outside.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import polars as pl
import yaml
from record import RESULTS, record

from sbdzsl import datasets, lake, training
from sbdzsl.config import DetectorSettings, RouterSettings, TrainSettings
from sbdzsl.datasets import synthetic

ROOT = Path(__file__).parents[1]
#: Drawn lakes and bundles are kept here between runs; git ignores it.
KEPT = ROOT / "runs" / "audit"

SEEN = ("brushed_steel", "cast_iron", "sandpaper")
UNSEEN = "woven_fabric"


def drawn_lake(num_images: int, size: int, seed: int = 5) -> Path:
    """A drawn lake of `size` x `size` pixels, a quarter of it of the unseen surface; drawn once."""
    folder = KEPT / f"lake-{num_images}x{size}-{seed}"
    if not (folder / UNSEEN / "Test" / "Label" / "Labels.txt").exists():
        synthetic.write_lake(str(folder), num_images, seed, (*SEEN, UNSEEN), size, defect_share=0.2)
    return folder


def image_manifest(folder: Path) -> Path:
    """A manifest of a drawn lake's images, without its masks; made once."""
    manifest = folder.with_suffix(".parquet")
    if not manifest.exists():
        table = datasets.samples_to_table(datasets.ingest("dagm", str(folder), seed=0).samples)
        lake.write_manifest(table, str(manifest))
    return manifest


def quick_bundle(size: int, crop_px: int = 256) -> Path:
    """A bundle of three surfaces, trained in a minute on drawn images of `size`; trained once. Speed is that of any."""
    folder = KEPT / f"bundle-{size}-{crop_px}"
    if not (folder / "bundle.json").exists():
        settings = TrainSettings(
            router=RouterSettings(ce_vae_steps=60, vaegan_steps=20, hidden=32, copies=2, crop_px=crop_px),
            detector=DetectorSettings(epochs=2),
        )
        manifest = lake.read_manifest(str(image_manifest(drawn_lake(160, size, seed=3))))
        training.train(manifest, str(folder), settings, seed=0, unseen=(UNSEEN,), report=print)
    return folder


def audit_command(bundle: Path | str, out: Path | str, *more: str) -> list[str]:
    """The words that start an audit with this Python."""
    return [sys.executable, "-m", "sbdzsl.cli", "audit", "--bundle", str(bundle), "--out", str(out), *more]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the repository first on the path, so that what is measured is what is here."""
    return os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"} | more


def settings_file(folder: Path, **settings: object) -> Path:
    """An audit's settings as a file of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "audit.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def rows_of(out: Path | str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All rows of an audit, sorted by image."""
    pieces = [pl.read_parquet(file, columns=columns) for file in sorted(Path(out).glob("parts/*.parquet"))]
    return pl.concat(pieces).sort("image_id")


def times_of_parts(out: Path) -> list[tuple[float, int]]:
    """When each part was written, seconds since the epoch, and its rows; in order of time."""
    parts = out.glob("parts/*.parquet")
    return sorted((part.stat().st_mtime, pl.scan_parquet(part).select(pl.len()).collect().item()) for part in parts)


def steady_rate(finished: Sequence[tuple[float, int]], edge: int) -> float:
    """Images a second of what was finished after the first `edge` pieces and before the last `edge`."""
    inner = finished[edge - 1 : len(finished) - edge]
    return sum(count for _, count in inner[1:]) / (inner[-1][0] - inner[0][0])


class Watch:
    """Samples the memory of a process and all that it started, by name, in a `with` block.

    `peaks` maps a name to the largest MB seen of one process of this name: `own` memory that is its alone, `rss`
    with what it shares (the object store, libraries). `first_seen` is when a name first appeared, seconds since the
    epoch.
    """

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self.peaks: dict[str, dict[str, float]] = {}
        self.first_seen: dict[str, float] = {}
        self._pid, self._every_s = pid, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            for pid in descendants(self._pid):
                name, memory = name_of(pid), memory_mb(pid)
                if memory is None:
                    continue
                self.first_seen.setdefault(name, time.time())
                peak = self.peaks.setdefault(name, {"own": 0.0, "rss": 0.0})
                for kind, value in memory.items():
                    peak[kind] = max(peak[kind], round(value, 1))


def descendants(pid: int) -> list[int]:
    """A process and all processes below it that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def name_of(pid: int) -> str:
    """What a process is to an audit: `driver`, `actor`, `worker` (another process of Ray's), or a server's name."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").strip("\0 ").split("\0")
    except OSError:
        return "gone"
    if "audit" in words:
        return "driver"
    if words[0].startswith("ray::"):
        return "actor" if "judg" in words[0].lower() else "worker"
    script = next((word for word in words[1:] if word.endswith(".py")), "python")
    return Path(script if "python" in words[0] else words[0]).name


def memory_mb(pid: int) -> dict[str, float] | None:
    """MB of a process now: `own` is what no other process can share, `rss` what is resident. None if it is gone.

    From `statm`, which costs nothing. `smaps_rollup` walks all pages and holds up the process meanwhile.
    """
    try:
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
    except (OSError, ValueError):
        return None
    page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
    return {"own": (int(resident) - int(shared)) * page_mb, "rss": int(resident) * page_mb}


def extend_record(study: str, key: str, figures: object) -> None:
    """Put one entry into a study's record and keep the others: a run that is stopped keeps what it has."""
    file = RESULTS / f"{study}.json"
    known = json.loads(file.read_text())["figures"] if file.exists() else {}
    record(study, known | {key: figures})
