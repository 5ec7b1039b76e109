"""How fast each network is by each runtime: milliseconds, work and size, in one run, interleaved.

    python benchmarks/runtimes.py                    30 repeats, ten minutes on two quiet cores
    python benchmarks/runtimes.py --repeats 3        a look

`network`: images of 512 x 512 network pixels, nothing but the net. `detect`: what `Detector.detect` does with
one image of 512 x 512 source pixels, at half scale. Random weights: speed does not depend on them (int8 takes its
ranges from noise). Medians over repeats in which all contestants take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from record import record
from torch import nn

from sbdzsl.config import DetectorSettings
from sbdzsl.export import quantise
from sbdzsl.graphs import GraphEngine, detector_graph
from sbdzsl.runtime import Runtime, open_session
from sbdzsl.sbdd.network import build_network
from sbdzsl.sbdd.predict import Detector, ready
from sbdzsl.sbdd.segdec import SegDec

SIDE = 512
BATCHES = (1, 8)
THREADS = 2
NETWORKS = (("lite", 0.5), ("lite", 1.0), ("lite", 1.5), ("lite", 2.0), ("reference", 1.0))

#: `reference` takes seconds a batch: so many repeats say enough.
REFERENCE_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to judge: what is timed, and how many images a call takes."""

    network: str
    width: float
    runtime: Runtime
    precision: str
    task: str
    batch: int
    call: Callable[[], object]


def contestants(network: str, width: float) -> list[Contestant]:
    """All ways to run one network."""
    settings = DetectorSettings(network=network, width=width, scale=0.5)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = ready(build_network(settings).folded(), "cpu")
    graph = detector_graph(net)
    rng = np.random.default_rng(0)
    graphs = {"float32": graph}
    if network == "lite":
        graphs["int8"] = quantise(graph, iter([rng.random((256, 256), dtype=np.float32) for _ in range(4)]))
    source = rng.random((SIDE, SIDE), dtype=np.float32)
    found: list[Contestant] = []

    def add(runtime: Runtime, precision: str, task: str, batch: int, call: Callable[[], object]) -> None:
        found.append(Contestant(network, width, runtime, precision, task, batch, call))

    by_torch = Detector(settings, net, 0.0)
    add("torch", "float32", "detect", 1, lambda: by_torch.detect(source))
    for batch in BATCHES:
        images = rng.random((batch, 1, SIDE, SIDE), dtype=np.float32)
        add("torch", "float32", "network", batch, lambda images=images: run_torch(net, images))  # type: ignore[misc]
        for runtime in ("onnxruntime", "openvino"):
            for precision, one in graphs.items():
                session = open_session(one, runtime, THREADS)
                add(
                    runtime,
                    precision,
                    "network",
                    batch,
                    lambda session=session, images=images: session.run({"image": images}),  # type: ignore[misc]
                )
    for runtime in ("onnxruntime", "openvino"):
        for precision, one in graphs.items():
            detector = by_torch.run_by(GraphEngine(net, runtime, THREADS, one))
            add(runtime, precision, "detect", 1, lambda detector=detector: detector.detect(source))  # type: ignore[misc]
    return found


@torch.inference_mode()
def run_torch(network: SegDec, images: np.ndarray) -> object:
    return network(torch.from_numpy(images).contiguous(memory_format=torch.channels_last))


@torch.inference_mode()
def size_of(network: str, width: float) -> dict[str, Any]:
    """Parameters, and multiply-accumulates of all convolutions and linear layers at 512 x 512."""
    net = build_network(DetectorSettings(network=network, width=width, scale=1.0)).folded()  # type: ignore[arg-type]
    macs = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    net(torch.zeros(1, 1, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return {"parameters": sum(parameter.numel() for parameter in net.parameters()), "gmac": round(macs / 1e9, 3)}


def measure(entries: list[Contestant], repeats: int) -> list[float]:
    """Median milliseconds an image of each contestant; they take turns."""
    times: list[list[float]] = [[] for _ in entries]
    for one in entries:  # the first call allocates, compiles and chooses kernels
        one.call()
    for repeat in range(repeats):
        for index, one in enumerate(entries):
            if one.network == "reference" and repeat >= REFERENCE_REPEATS:
                continue
            started = time.perf_counter()
            one.call()
            times[index].append((time.perf_counter() - started) * 1e3 / one.batch)
    return [float(np.median(found)) for found in times]


def key_of(one: Contestant) -> tuple[str, Runtime, int]:
    """What is compared with each other."""
    return one.task, one.runtime, one.batch


def main() -> None:
    """Measure all, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(THREADS)
    entries = [one for network in NETWORKS for one in contestants(*network)]
    medians = measure(entries, repeats)
    # The same task, runtime and batch by `reference`.
    slow = {key_of(one): ms for one, ms in zip(entries, medians, strict=True) if one.network == "reference"}
    rows = []
    print(f"{'network':12}{'width':>6}{'runtime':>13}{'precision':>10}{'task':>9}{'batch':>6}{'ms':>10}{'ratio':>8}")
    for one, ms in zip(entries, medians, strict=True):
        row: dict[str, Any] = {
            name: getattr(one, name) for name in ("network", "width", "runtime", "precision", "task", "batch")
        }
        row |= {"ms_per_image": round(ms, 3), "times_faster_than_reference": round(slow[key_of(one)] / ms, 1)}
        rows.append(row)
        cells = f"{one.network:12}{one.width:6}{one.runtime:>13}{one.precision:>10}{one.task:>9}{one.batch:6}"
        print(f"{cells}{ms:10.2f}{row['times_faster_than_reference']:8.0f}")
    sizes = {f"{network} {width:g}": size_of(network, width) for network, width in NETWORKS}
    for name, size in sizes.items():
        print(f"{name:14}{size['parameters']:>12,} parameters {size['gmac']:>8} GMAC at {SIDE} x {SIDE}")
    packages = {name: version(name) for name in ("onnxruntime", "openvino")}
    record(
        "runtimes",
        {"threads": THREADS, "repeats": repeats, "side": SIDE, "packages": packages, "sizes": sizes, "runs": rows},
    )


if __name__ == "__main__":
    main()
