"""Time a row and memory of an audit from a thousand to a million small images.

    python benchmarks/audit_scale.py 1000 10000 100000        an hour on two cores
    python benchmarks/audit_scale.py 1000000                  hours; each size is recorded when it is done
    python benchmarks/audit_scale.py --plot                   draw docs/images/audit_scale.png from the record

Images of 64 x 64 pixels, drawn once and packed into TAR files of 5,000, which many names lead to: so a million of them
take little disk, and each has a URI of its own all the same. `--loose` makes them single files instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import audit_lab as lab
import matplotlib.pyplot as plt
import polars as pl
import pyarrow as pa
from record import RESULTS

from sbdzsl import lake

SIZE, PER_ARCHIVE = 64, 5000
STUDY = "audit_scale"
IMAGE = lab.ROOT / "docs" / "images" / "audit_scale.png"


def drawn_files() -> list[Path]:
    """The images that all others are names of."""
    table = lake.read_manifest(str(lab.image_manifest(lab.drawn_lake(PER_ARCHIVE, SIZE))))
    # Surfaces in turn, so that any run of images holds all of them.
    files = sorted(table["uri"].to_pylist(), key=lambda uri: (Path(uri).stem, uri))
    return [Path(file) for file in files]


def archive() -> tuple[Path, list[tuple[int, int, str]]]:
    """One TAR of all drawn images, and offset, size and name of each member."""
    file = lab.KEPT / f"scale-{PER_ARCHIVE}.tar"
    if not file.exists():
        partial = file.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, image in enumerate(drawn_files()):
                tar.add(image, f"{index // 1000:02d}/{index:05d}.png")
        partial.rename(file)
    with tarfile.open(file) as tar:
        return file, [(member.offset_data, member.size, member.name) for member in tar if member.isfile()]


def packed(num_images: int, folder: Path) -> Iterator[tuple[str, int]]:
    """URI and bytes of images in TAR files below `folder`."""
    file, members = archive()
    for number in range(-(-num_images // PER_ARCHIVE)):
        named = folder / f"{number:05d}.tar"
        os.link(file, named)
        for offset, size, name in members[: num_images - number * PER_ARCHIVE]:
            yield f"{named}#{offset}+{size}/{name}", size


def loose(num_images: int, folder: Path) -> Iterator[tuple[str, int]]:
    """URI and bytes of images that are single files below `folder`, a thousand a folder."""
    files = drawn_files()
    for number in range(num_images):
        named = folder / f"{number // 1000:04d}" / f"{number:07d}.png"
        if number % 1000 == 0:
            named.parent.mkdir()
        os.link(files[number % len(files)], named)
        yield str(named), 0


def write_manifest(rows: Iterator[tuple[str, int]], file: Path) -> None:
    """The manifest of these images."""
    uris, sizes = zip(*rows, strict=True)
    ids = [lake.image_id(uri, "") for uri in uris]
    columns = {"image_id": ids, "uri": uris, "size_bytes": sizes}
    schema = pa.schema([lake.MANIFEST_SCHEMA.field(name) for name in columns])
    lake.write_manifest(pa.table(columns, schema=schema), str(file), row_group_size=65_536)


def listing_rate(folder: Path, work: Path) -> float:
    """Files a second of listing a folder of single files."""
    began = time.perf_counter()
    try:
        from sbdzsl.lake import listing
    except ImportError:
        count = lake.list_images(str(folder)).num_rows
    else:
        count = listing.list_lake(str(folder), str(work / "listing"), report=lambda _: None).num_images
    return round(count / (time.perf_counter() - began))


def measure(num_images: int, is_loose: bool) -> dict[str, Any]:
    """One audit of so many images: seconds by step, milliseconds a row, peak memory by process."""
    folder = lab.KEPT / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    images = folder / "images"
    images.mkdir(parents=True)
    row: dict[str, Any] = {"images": num_images, "form": "files" if is_loose else "TAR"}
    began = time.perf_counter()
    write_manifest((loose if is_loose else packed)(num_images, images), folder / "manifest.parquet")
    row["preparing_s"] = round(time.perf_counter() - began, 1)
    if is_loose:
        row["listed_per_second"] = listing_rate(images, folder)
    settings = lab.settings_file(folder)
    words = lab.audit_command(
        lab.quick_bundle(SIZE, crop_px=SIZE), folder / "out", "--manifest", str(folder / "manifest.parquet"),
        "--config", str(settings),
    )  # fmt: skip
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
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    for size in given.sizes:
        found = measure(size, given.loose)
        print(found, flush=True)
        lab.extend_record(STUDY, f"{size} {found['form']}", found)
    if given.plot:
        plot()


if __name__ == "__main__":
    main()
