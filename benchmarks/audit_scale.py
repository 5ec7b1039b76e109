"""Time a row and memory of an audit from a thousand to a million small images.

    python benchmarks/audit_scale.py 1000 10000 100000        an hour on two cores
    python benchmarks/audit_scale.py 1000000                  hours; each size is recorded when it is done
    python benchmarks/audit_scale.py --plot                   draw docs/images/audit_scale.png from the record

Images of 64 x 64 pixels, drawn once and packed into TAR files of 5,000, which many names lead to: so a million of them
take little disk, and each has a URI of its own all the same. They are listed first, as `sbdzsl list` does. `--loose`
makes them single files instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import audit_lab as lab
import matplotlib.pyplot as plt
import polars as pl
from record import RESULTS

from sbdzsl import lake
from sbdzsl.lake import listing

SIZE, PER_ARCHIVE = 64, 5000
STUDY = "audit_scale"
IMAGE = lab.ROOT / "docs" / "images" / "audit_scale.png"


def drawn_files() -> list[Path]:
    """The images that all others are names of."""
    table = lake.read_manifest(str(lab.image_manifest(lab.drawn_lake(PER_ARCHIVE, SIZE))))
    # Surfaces in turn, so that any run of images holds all of them.
    files = sorted(table["uri"].to_pylist(), key=lambda uri: (Path(uri).stem, uri))
    return [Path(file) for file in files]


def archive(num_images: int) -> Path:
    """A TAR of drawn images; made once."""
    file = lab.KEPT / f"scale-{num_images}.tar"
    if not file.exists():
        partial = file.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, image in enumerate(drawn_files()[:num_images]):
                tar.add(image, f"{index // 1000:02d}/{index:05d}.png")
        partial.rename(file)
    return file


def packed(num_images: int, folder: Path) -> None:
    """So many images in TAR files below `folder`: names that lead to one file, the last one cut to what is missing."""
    for number in range(num_images // PER_ARCHIVE):
        os.link(archive(PER_ARCHIVE), folder / f"{number:05d}.tar")
    if num_images % PER_ARCHIVE:
        os.link(archive(num_images % PER_ARCHIVE), folder / "rest.tar")


def loose(num_images: int, folder: Path) -> None:
    """So many images as single files below `folder`, a thousand a folder."""
    files = drawn_files()
    for number in range(num_images):
        named = folder / f"{number // 1000:04d}" / f"{number:07d}.png"
        if number % 1000 == 0:
            named.parent.mkdir()
        os.link(files[number % len(files)], named)


def measure(num_images: int, is_loose: bool, runtime: str) -> dict[str, Any]:
    """One audit of so many images: seconds by step, milliseconds a row, peak memory by process."""
    folder = lab.KEPT / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    images = folder / "images"
    images.mkdir(parents=True)
    row: dict[str, Any] = {"images": num_images, "form": "files" if is_loose else "TAR", "runtime": runtime}
    (loose if is_loose else packed)(num_images, images)
    began = time.perf_counter()
    listed = listing.list_lake(str(images), str(folder / "listing"), report=lambda _: None)
    row["listed_per_second"] = round(listed.num_images / (time.perf_counter() - began))
    bundle = lab.quick_bundle(SIZE, crop_px=SIZE)
    words = lab.audit_command(bundle, folder / "out", "--manifest", listed.folder, "--runtime", runtime)
    started = time.time()
    with (folder / "audit.log").open("wb") as log:
        process = subprocess.Popen(words, env=lab.environment(), stdout=log, stderr=log)
        with lab.Watch(process.pid, every_s=0.5) as watch:
            code = process.wait()
    ended = time.time()
    assert code == 0, (folder / "audit.log").read_text()[-2000:]
    parts = lab.times_of_parts(folder / "out")
    ids = lab.rows_of(folder / "out", ["image_id", "verdict"])
    assert ids["image_id"].n_unique() == len(ids) == num_images
    return row | {
        "error_rows": ids.filter(pl.col("verdict") == "error").height,
        "shards": len(parts),
        "wall_s": round(ended - started, 1),
        "until_first_shard_s": round(parts[0][0] - started, 1),
        "after_last_shard_s": round(ended - parts[-1][0], 1),
        "ms_a_row": round(1e3 / lab.steady_rate(parts, edge=os.cpu_count() or 1), 3),
        "verdict_bytes_a_row": round(
            sum(part.stat().st_size for part in folder.glob("out/parts/*.parquet")) / num_images, 1
        ),
        "report_mb": round((folder / "out" / "report.html").stat().st_size / 1e6, 2),
        "peak_mb": watch.peaks,
    }


def plot() -> None:
    """Time a row and peak memory over the number of images."""
    runs = sorted(
        json.loads((RESULTS / f"{STUDY}.json").read_text())["figures"].values(), key=lambda run: run["images"]
    )
    counts = [run["images"] for run in runs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(counts, [run["ms_a_row"] for run in runs], "o-", label="while judging")
    left.plot(counts, [1e3 * run["wall_s"] / run["images"] for run in runs], "s--", label="the whole command")
    left.set(xscale="log", yscale="log", xlabel="images", ylabel="ms a row")
    for name, mark in (("driver", "o-"), ("actor", "s-")):
        right.plot(counts, [run["peak_mb"][name]["own"] for run in runs], mark, label=name)
    right.set(xscale="log", xlabel="images", ylabel="peak memory of its own, MB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(IMAGE, dpi=120)
    print(f"-> {IMAGE}")


def main() -> None:
    """Measure each size, record it, draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*")
    parser.add_argument("--loose", action="store_true")
    parser.add_argument("--runtime", default="openvino", help="what runs the nets")
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    for size in given.sizes:
        found = measure(size, given.loose, given.runtime)
        print(found, flush=True)
        lab.extend_record(STUDY, f"{size} {found['form']}", found)
    if given.plot:
        plot()


if __name__ == "__main__":
    main()
