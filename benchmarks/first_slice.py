"""The whole system on real and drawn images: router, latency, demo.

    python benchmarks/first_slice.py routing     a bundle of three surfaces over them and 22 unseen ones: S, U, H
    python benchmarks/first_slice.py latency     `inspect` of one 512x512 image in one process
    python benchmarks/first_slice.py demo        `make demo`: found, missed, false alarms, minutes

Without an argument all three. All but the demo need the shared images (SBDZSL_SHARED). About 20 minutes on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from record import record, shared_data
from router_scores import Method, Training, cosine_neighbour, cross_fitted

from sbdzsl import datasets, lake, training
from sbdzsl.bundle import Bundle
from sbdzsl.calibration import conformal_threshold
from sbdzsl.cluster.audit import run_audit
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.config import TrainSettings
from sbdzsl.datasets.sample import group_of, samples_from_table
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.metrics import ZeroShotFigures, auroc, zero_shot_figures
from sbdzsl.sbad.embedding import Embedder

BUDGETS = (0.02, 0.05)
ROUTED = ("dagm_class1", "kolektorsdd", "magnetic_tile")


def manifest_of(adapter: str, folder: str, **choices: Any) -> pa.Table:
    """Manifest of one shared data set."""
    return datasets.samples_to_table(datasets.ingest(adapter, str(shared_data() / folder), **choices).samples)


def routing(work: Path) -> None:
    """Audit three seen and 22 unseen real surfaces by one bundle, beside cosine 1-NN on the same features."""
    seen = pa.concat_tables(
        [
            manifest_of("dagm", "DAGM2007", surface="dagm_class1"),
            manifest_of("kolektorsdd", "KolektorSDD"),
            manifest_of("magnetic_tile", "MagneticTile"),
        ]
    )
    strangers = [manifest_of("neu", "NEU-DET"), manifest_of("folder", "KTH-TIPS"), manifest_of("folder", "Leather27")]
    bundle = training.train(seen, str(work / "routing"), TrainSettings(), report=lambda line: print(line, flush=True))
    audited = pa.concat_tables([only(seen, "test"), *strangers])
    lake.write_manifest(audited, str(work / "audited.parquet"))
    request = AuditRequest(str(work / "routing"), str(work / "audit"), manifest_uri=str(work / "audited.parquet"))
    result = run_audit(request)
    assert result.reconciliation.is_complete
    rows = pl.read_parquet(work / "audit" / "parts" / "*.parquet")
    truth = dict(zip(audited["image_id"].to_pylist(), audited["surface"].to_pylist(), strict=True))
    surfaces = [truth[image_id] for image_id in rows["image_id"]]
    scores = rows["unseen_score"].to_numpy()
    ours = {
        str(rate): figures(
            zero_shot_figures(surfaces, rows["surface"].to_list(), scores > bundle.router.threshold(rate), ROUTED)
        )
        for rate in BUDGETS
    }
    strange = np.array([surface not in ROUTED for surface in surfaces])
    study = {
        "num_images": audited.num_rows,
        "num_rows": result.reconciliation.num_rows,
        "calibration": bundle.settings.router.calibration,
        "images_per_second": result.summary.facts.images_per_second,
        "unseen_surfaces": len({surface for surface in surfaces if surface not in ROUTED}),
        "whitened-nn": ours | {"auroc": auroc(strange, scores)},
        "cosine 1-NN": cosine_baseline(bundle, seen, audited),
    }
    for name in ("whitened-nn", "cosine 1-NN"):
        print(name, study[name])
    record("routing", study)


def cosine_baseline(bundle: Bundle, seen: pa.Table, audited: pa.Table) -> dict[str, Any]:
    """Cosine distance to the nearest image on the bundle's own features, threshold cross-fitted alike."""
    embedder = Embedder(bundle.backbone, bundle.settings.router)
    known = pa.concat_tables([only(seen, "train"), only(seen, "val")])
    bank, owners = embed(embedder, known)
    groups = [group_of(sample)[1] for sample in samples_from_table(known)]
    names, labels = np.unique(owners, return_inverse=True)
    fitted = cross_fitted(Method(cosine_neighbour), Training(bank, labels, names.tolist(), groups, None, None, 0))
    features, surfaces = embed(embedder, audited)
    distances = fitted.score(features)
    scores, named = distances.min(axis=1), names[distances.argmin(axis=1)].tolist()
    held_out = np.sort(fitted.held_out)
    strange = np.array([surface not in ROUTED for surface in surfaces])
    found: dict[str, Any] = {
        str(rate): figures(zero_shot_figures(surfaces, named, scores > conformal_threshold(held_out, rate), ROUTED))
        for rate in BUDGETS
    }
    return found | {"auroc": auroc(strange, scores)}


def latency(work: Path) -> None:
    """Median over 50 of reading, decoding, routing and detecting one 512x512 DAGM image in one process."""
    manifest = manifest_of("dagm", "DAGM2007", surface="dagm_class1")
    inspector = Inspector(training.train(manifest, str(work / "dagm_class1"), TrainSettings()))
    # An image that goes through both stages: one that is called unseen never comes to a detector.
    warm_up = (inspector.judge("warm-up", uri) for uri in only(manifest, "test")["uri"].to_pylist())
    uri = next(verdict.uri for verdict in warm_up if verdict.detect_ms is not None)
    judged = [inspector.judge("timed", uri) for _ in range(50)]
    total = [v.decode_ms + v.route_ms + v.detect_ms for v in judged]  # type: ignore[operator]
    stages = {
        name: round(float(np.median([getattr(v, name) for v in judged])), 2)
        for name in ("decode_ms", "route_ms", "detect_ms")
    }
    quantiles = {name: round(float(np.quantile(total, q)), 2) for name, q in (("median_ms", 0.5), ("p95_ms", 0.95))}
    print(quantiles | stages)
    record("latency", {"image": "512x512 8-bit grey PNG", "repeats": len(judged)} | quantiles | stages)


def demo(_: Path) -> None:
    """Run the demo, which counts against the truth that it drew."""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "examples/demo.py"], cwd=root, check=True)
    record("demo", json.loads((root / "demo" / "result.json").read_text()))


def figures(found: ZeroShotFigures) -> dict[str, float | None]:
    """The four that go into the table."""
    return {"s": found.s, "u": found.u, "h": found.h, "false_alarms": found.false_alarms, "naming": found.naming}


def embed(embedder: Embedder, manifest: pa.Table) -> tuple[NDArray[np.float32], list[str]]:
    """Features and surfaces of the readable images of a manifest."""
    rows = manifest.to_pylist()
    images = [load_image(row["image_id"], row["uri"], TrainSettings().image).image for row in rows]
    kept = [(embedder.embed(image.grey()), row["surface"]) for image, row in zip(images, rows, strict=True) if image]
    return np.stack([features for features, _ in kept]), [surface for _, surface in kept]


def only(manifest: pa.Table, split: str) -> pa.Table:
    """Rows of one split."""
    return manifest.filter(pa.compute.equal(manifest["split"], split))


STUDIES = {"routing": routing, "latency": latency, "demo": demo}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(STUDIES)
    if set(chosen) - set(STUDIES):
        sys.exit(f"found {chosen}; studies are {', '.join(STUDIES)}")
    with tempfile.TemporaryDirectory() as folder:
        for study in chosen:
            STUDIES[study](Path(folder))
