"""Peak memory and time of one detector pass over 1 to 64 megapixels, whole and in tiles below a ceiling.

    python benchmarks/large_images.py          about a minute on two cores

Each measurement is a process of its own, at network scale 1, beside what `Footprint` foretells. Random weights: neither
memory nor time depends on them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from record import record

from sbdzsl.config import DetectorSettings
from sbdzsl.errors import ImageError
from sbdzsl.sbdd.network import build_network
from sbdzsl.sbdd.predict import Detector, ready
from sbdzsl.sbdd.tiling import choose_tile

SIDES = (1024, 2048, 4096, 8192)
CEILINGS_MB = (None, 1024, 512)
REPEATS = 3


def measure(side: int, ceiling_mb: float | None) -> dict[str, Any]:
    """One image of `side` x `side` in this process: peak MB beyond the image, median ms, the score."""
    torch.manual_seed(0)
    settings = DetectorSettings(scale=1.0)
    detector = Detector(settings, ready(build_network(settings).folded(), "cpu"), 0.0)
    footprint, ceiling = detector.footprint, 1e9 if ceiling_mb is None else ceiling_mb
    grey = np.random.default_rng(0).random((side, side), dtype=np.float32)
    row: dict[str, Any] = {"megapixels": round(side * side / 1e6, 1), "max_memory_mb": ceiling_mb}
    try:
        tile = choose_tile(detector.network, footprint, grey.shape, ceiling)
    except ImageError as error:
        return row | {"refused": error.message}
    detector.detect(grey[:256, :256])
    before = _status_mb("VmRSS") - grey.nbytes / 1e6
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = detector.detect(grey, ceiling)
        times.append((time.perf_counter() - started) * 1e3)
    row |= {"tile": tile, "peak_mb": round(_status_mb("VmHWM") - before), "ms": round(float(np.median(times)))}
    if tile is None:
        return row | {"foretold_mb": round(footprint.whole_mb(side * side)), "score": found.score}
    with_halo = min(tile + 128, side) ** 2
    return row | {"foretold_mb": round(footprint.tiled_mb(side * side, with_halo)), "score": found.score}


def _status_mb(name: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024 / 1e6


def main() -> None:
    """Measure all pairs and record them."""
    rows = []
    for side in SIDES:
        for ceiling in CEILINGS_MB:
            command = [sys.executable, __file__, str(side), str(ceiling or 0)]
            rows.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            print(rows[-1], flush=True)
    record("large_images", {"network": "lite, width 1, scale 1", "runs": rows})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]) or None)))
    else:
        main()
