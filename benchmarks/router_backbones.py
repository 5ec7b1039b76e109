"""Where to cut the backbone: H, milliseconds and megabytes by stages. Writes results/router_backbones.json.

    SBDZSL_SHARED=../shared python benchmarks/router_backbones.py     ten minutes on two quiet cores

The gate of `sbad_gzsl.py` on its random splits and under the edges of the envelope, with the features of some stages
only; the time of one crop of 256 x 256 by OpenVINO, two threads, the cuts taking turns. The stages are cumulative but
for the last row: what is deeper than the last one is not computed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import real_surfaces
import sbad_gzsl
from record import record

from sbdzsl.graphs import GraphTrunk, trunk_graph
from sbdzsl.runtime import open_session
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.efficientnet import STAGE_NAMES

SPLITS, REPEATS, THREADS = 20, 60, 2
CHANNELS = dict(zip(STAGE_NAMES, (32, 16, 24, 40, 80, 112), strict=True))
CUTS = [STAGE_NAMES[: last + 1] for last in range(1, len(STAGE_NAMES))] + [STAGE_NAMES[2:]]
EDGES = ("gain", "blur", "noise", "scale")


def main() -> int:
    everything = real_surfaces.load(sbad_gzsl.SETTINGS)
    took = milliseconds()
    rows = []
    for cut in CUTS:
        sbad_gzsl._data = only(everything, cut)
        splits = [sbad_gzsl.random_split(everything.surfaces, seed) for seed in range(SPLITS)]
        data, gate, envelope = sbad_gzsl._data, sbad_gzsl.METHODS["gate"], sbad_gzsl.METHODS["gate, envelope"]
        plain = [sbad_gzsl.figures(split, sbad_gzsl.fit_one(split, gate), data.clean) for split in splits]
        fitted = [(split, sbad_gzsl.fit_one(split, envelope)) for split in splits[: SPLITS // 4]]
        changed = [sbad_gzsl.figures(*one, data.under(kind, "edge")) for one in fitted for kind in EDGES]
        tensors = load_backbone(stages=cut).tensors()
        row = {
            "stages": list(cut),
            "numbers": everything_columns(cut).size,
            "H@5%": sbad_gzsl.spread([one["H@5%"] for one in plain]),
            "H@2%": sbad_gzsl.spread([one["H@2%"] for one in plain]),
            "edges, H@5%": sbad_gzsl.spread([one["H@5%"] for one in changed]),
            "crop_ms": round(took[cut], 2),
            "megabytes": round(sum(tensor.numel() for tensor in tensors.values()) * 4 / 1e6, 2),
        }
        rows.append(row)
        print(row, flush=True)
    record("router_backbones", {"splits": SPLITS, "threads": THREADS, "edges": list(EDGES), "cuts": rows})
    return 0


def everything_columns(cut: tuple[str, ...]) -> np.ndarray:
    """Places of a cut's means and log-stds among those of all stages."""
    kept = np.concatenate([np.full(count, name in cut) for name, count in CHANNELS.items()])
    return np.flatnonzero(np.concatenate([kept, kept]))


def only(data: real_surfaces.RealSurfaces, cut: tuple[str, ...]) -> real_surfaces.RealSurfaces:
    columns = everything_columns(cut)
    parts = {name: getattr(data, name)[..., columns] for name in ("clean", "copies", "even", "changed")}
    return replace(data, **parts)


def milliseconds() -> dict[tuple[str, ...], float]:
    """Median over turns of one crop through the graph of each cut."""
    crop = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    trunks = {
        cut: GraphTrunk(open_session(trunk_graph(load_backbone(stages=cut)), "openvino", THREADS)) for cut in CUTS
    }
    times: dict[tuple[str, ...], list[float]] = {cut: [] for cut in CUTS}
    for _ in range(REPEATS):
        for cut, trunk in trunks.items():
            started = time.perf_counter()
            trunk(crop)
            times[cut].append(1e3 * (time.perf_counter() - started))
    return {cut: float(np.median(values)) for cut, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
