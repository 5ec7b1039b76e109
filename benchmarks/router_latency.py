"""What naming the surface of one image costs, part by part and by runtime. Writes results/router_latency.json.

    SBDZSL_SHARED=../shared python benchmarks/router_latency.py     two minutes on two quiet cores

Twenty real surfaces, an image of 512 x 512 (two crops of 256), two threads; medians, the runtimes taking turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import real_surfaces
import torch
from record import record

from sbdzsl.config import RouterSettings
from sbdzsl.graphs import GraphTrunk, trunk_graph
from sbdzsl.runtime import Runtime, open_session
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages, fit_router

THREADS, REPEATS, SURFACES = 2, 60, 20
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime", "openvino")


def main() -> int:
    torch.set_num_threads(THREADS)
    settings = RouterSettings(ce_vae_steps=20, vaegan_steps=5)  # weights do not change the time
    data = real_surfaces.load(RouterSettings())
    known = np.isin(data.surfaces, np.unique(data.surfaces)[:SURFACES])
    train, calibration = (
        EmbeddedImages(data.clean[own], data.surfaces[own].tolist(), copies=data.copies[own], even=data.even[own, 0])
        for own in (known & (np.arange(len(known)) % 4 < 3), known & (np.arange(len(known)) % 4 == 3))
    )
    router = fit_router(train, calibration, standard_attributes(), settings, seed=0).router
    trunk = load_backbone()
    embedders = {"torch": Embedder(trunk, settings)}
    for runtime in RUNTIMES[1:]:
        statistics = GraphTrunk(open_session(trunk_graph(trunk), runtime, THREADS))
        embedders[runtime] = Embedder(trunk, settings, statistics=statistics)
    grey = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    features = embedders["torch"].embed(grey)
    parts: dict[str, Callable[[], object]] = {
        **{runtime: lambda e=e: e.embed(grey) for runtime, e in embedders.items()},  # type: ignore[misc]
        **{promise: lambda g=gate: g.distances(features) for promise, gate in router.gates.items()},  # type: ignore[misc]
        "reader": lambda: router.reader.read(features),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(REPEATS):
        for name, call in parts.items():
            started = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - started))
    median = {name: float(np.median(values)) for name, values in times.items()}
    runs: list[dict[str, Any]] = []
    for runtime in RUNTIMES:
        for promise in router.gates:
            total = median[runtime] + median[promise] + median["reader"]
            part = {"features_ms": median[runtime], "gate_ms": median[promise], "reader_ms": median["reader"]}
            runs.append({"runtime": runtime, "promise": promise, **part, "total_ms": total})
            print(runs[-1])
    megabytes = (sum(t.nbytes for t in tensors.values()) / 1e6 for tensors in (trunk.tensors(), router.tensors()))
    sizes = dict(zip(("backbone_mb", "router_mb"), megabytes, strict=True))
    record("router_latency", {"threads": THREADS, "repeats": REPEATS, "surfaces": SURFACES, "runs": runs} | sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
