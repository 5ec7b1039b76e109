"""A thousand mutated images and twenty bombs: one row each, no crash, and how much memory the audit took.

python benchmarks/audit_hostile.py          two minutes on two cores
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import audit_lab as lab
import hostile_images
from record import record

SIZE, NUM_MUTATED = 256, 1000


def judge(folder: Path, bundle: Path | str, files: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """Write the files into `folder`, audit them with one command, and count."""
    images = folder / "images"
    images.mkdir(parents=True)
    for name, data in files:
        (images / name).write_bytes(data)
    settings = lab.settings_file(folder, gallery_size=4)
    words = lab.audit_command(bundle, folder / "out", "--lake", str(images), "--config", str(settings))
    began = time.monotonic()
    with (folder / "audit.log").open("wb") as log:
        process = subprocess.Popen(words, env=lab.environment(), stdout=log, stderr=log)
        with lab.Watch(process.pid, every_s=0.1) as watch:
            code = process.wait()
    rows = lab.rows_of(folder / "out", ["image_id", "uri", "verdict", "error_code"])
    wanted = {name for name, _ in files}
    found = Counter(Path(uri).name for uri in rows["uri"])
    bomb_rows = {
        Path(row["uri"]).name: row["error_code"] or row["verdict"]
        for row in rows.to_dicts()
        if Path(row["uri"]).name[0].isalpha()
    }
    starts = [len(list(shard.iterdir())) for shard in (folder / "out").glob("runs/*/started/*")]
    return {
        "files": len(files),
        "processes_that_died": sum(starts) - len(starts),
        "rows": len(rows),
        "lost": len(wanted - set(found)),
        "doubled": sum(count - 1 for count in found.values()),
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "verdicts": dict(Counter(row["error_code"] or row["verdict"] for row in rows.to_dicts())),
        "bombs": dict(sorted(bomb_rows.items())),
        "peak_mb": watch.peaks,
    }


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    folder = lab.KEPT / "hostile"
    shutil.rmtree(folder, ignore_errors=True)
    # Beside it the same without bombs: what the audit takes anyway.
    mutated = list(hostile_images.mutated(NUM_MUTATED, seed))
    plain = judge(folder / "plain", lab.quick_bundle(SIZE), mutated[:200])
    found = judge(folder / "all", lab.quick_bundle(SIZE), [*mutated, *hostile_images.bombs()])
    print(found)
    record("audit_hostile", {"seed": seed, **found, "peak_mb_without_bombs": plain["peak_mb"]})


if __name__ == "__main__":
    main()
