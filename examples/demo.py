"""The main job from start to end on drawn images: lake, training, audit, report, and a count against the truth.

Run by `make demo`. Every step but the last is a command of `sbdzsl` that is printed before it runs. The images are
drawn, so the figures say that the system works, not how well it does on your surfaces.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq

HERE = Path(__file__).parent
OUT = Path("demo")
NUM_IMAGES = 1600
UNSEEN = ("leather", "woven_fabric")


@dataclass(frozen=True)
class Truth:
    """What is known of one archived image; `surface` None: the file is broken on purpose."""

    surface: str | None
    defective: bool


def main() -> int:
    """Run the demo in ./demo, which is made anew; returns 0 if every image of the archive got exactly one row."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    sbdzsl("datasets", "synthetic", "--out", OUT / "lake", "--images", NUM_IMAGES)
    sbdzsl("ingest", "--adapter", "dagm", "--source", OUT / "lake", "--out", OUT / "manifest.parquet")
    unseen = [word for surface in UNSEEN for word in ("--unseen", surface)]
    config = HERE / "demo.yaml"
    sbdzsl("train", "--manifest", OUT / "manifest.parquet", *unseen, "--config", config, "--bundle", OUT / "bundle")
    truth = fill_archive(OUT / "archive", OUT / "manifest.parquet")
    sbdzsl("audit", "--bundle", OUT / "bundle", "--lake", OUT / "archive", "--out", OUT / "audit")
    counts, complete = compare(truth, OUT / "audit" / "parts")
    minutes = (time.monotonic() - started) / 60
    (OUT / "result.json").write_text(json.dumps(counts | {"archived": len(truth), "minutes": round(minutes, 1)}))
    print(f"\nreport: {OUT / 'audit' / 'report.html'}   ({minutes:.1f} minutes)")
    return 0 if complete else 1


def sbdzsl(*words: object) -> None:
    """Print and run a command; stop the demo if it fails."""
    command = [str(word) for word in words]
    print("\n$ sbdzsl", *command, flush=True)
    subprocess.run([sys.executable, "-m", "sbdzsl.cli", *command], check=True)


def fill_archive(archive: Path, manifest: Path) -> dict[str, Truth]:
    """Copy the test images, all of the unseen surfaces and some broken files into one archive without labels."""
    archive.mkdir(parents=True)
    truth: dict[str, Truth] = {}
    for row in pq.read_table(manifest).to_pylist():
        if row["split"] == "test" or row["surface"] in UNSEEN:
            name = f"{len(truth):05d}.png"
            shutil.copy(row["uri"], archive / name)
            truth[name] = Truth(row["surface"], row["label"] == "defect")
    whole = (archive / "00000.png").read_bytes()
    broken = {
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "notes.png": b"shift 2, line 4: lens cleaned\n",
        "header_only.jpg": b"\xff\xd8\xff\xe0",
        "animation.gif.png": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    }
    for name, data in broken.items():
        (archive / name).write_bytes(data)
        truth[name] = Truth(None, False)
    print(f"\n{len(truth)} files in {archive}: {len(broken)} of them broken, two surfaces never seen in training")
    return truth


def compare(truth: dict[str, Truth], parts: Path) -> tuple[dict[str, int], bool]:
    """Print found, missed and false alarms; returns the counts, and whether each archived file has exactly one row."""
    rows = pyarrow.dataset.dataset(str(parts)).to_table(columns=["uri", "verdict", "surface"]).to_pylist()
    verdicts = {Path(row["uri"]).name: row for row in rows}
    counts: Counter[str] = Counter()
    for name in truth.keys() & verdicts.keys():
        counts[outcome(truth[name], verdicts[name]["verdict"], verdicts[name]["surface"])] += 1
    print("\nagainst the truth:")
    for line in (
        f"  defects          found {counts['found']}, missed {counts['missed']}",
        f"  good images      passed {counts['passed']}, false alarms {counts['false alarm']}",
        f"  unseen surfaces  flagged {counts['flagged']}, let through {counts['let through']}",
        f"  broken files     reported {counts['reported']}, judged as images {counts['judged']}",
        f"  named wrongly    {counts['misnamed']}",
    ):
        print(line)
    return dict(counts), len(rows) == len(truth) and set(verdicts) == set(truth)


def outcome(known: Truth, verdict: str, surface: str | None) -> str:
    """Which count an image belongs to. An image of a seen surface that is called unseen is an alarm like a defect."""
    if known.surface is None:
        return "reported" if verdict == "error" else "judged"
    if known.surface in UNSEEN:
        return "flagged" if verdict == "unseen" else "let through"
    if surface != known.surface and verdict != "unseen":
        return "misnamed"
    if known.defective:
        return "found" if verdict in ("defect", "unseen") else "missed"
    return "passed" if verdict == "good" else "false alarm"


if __name__ == "__main__":
    sys.exit(main())
