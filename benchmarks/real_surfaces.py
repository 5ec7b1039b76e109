"""The shared real surfaces as the router's studies use them: which images, their groups, their features under changes.

25 surfaces: DAGM class 1, KolektorSDD, magnetic tile, NEU (one surface, or six by kind of defect), seven materials of
KTH-TIPS at all nine scales, fourteen leathers. Of the large sets whole groups are drawn until there are enough images.
Features are embedded once, by two processes, and kept in the temporary folder until backbone or embedding change.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from record import shared_data

from sbdzsl import datasets
from sbdzsl.config import EnvelopeSettings, ImageSettings, RouterSettings
from sbdzsl.datasets.sample import Sample, group_of
from sbdzsl.inspector import load_image
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.conditions import Conditions, changed_copies
from sbdzsl.sbad.embedding import EMBEDDING_VERSION, Embedder

Grey = NDArray[np.float32]

WORKERS = 2
#: Of a set with more images, whole groups are drawn until there are so many.
MAX_IMAGES = 120
ENVELOPE = EnvelopeSettings()
#: Strengths of the drawn changes, as shares of what the envelope allows.
STRENGTHS = {"mild": 0.5, "edge": 1.0, "beyond": 1.5}


def _changes() -> dict[str, Callable[[float, NDArray[np.float64]], Conditions]]:
    """Kind of change -> conditions at a strength, the direction of each amount by a sign."""
    e = ENVELOPE

    def light(s: float, sign: NDArray[np.float64]) -> Conditions:
        return Conditions(gain=e.gain ** (s * sign[0]), gamma=e.gamma ** (s * sign[1]), offset=e.offset * s * sign[2])

    def together(s: float, sign: NDArray[np.float64]) -> Conditions:
        return Conditions(
            gain=e.gain ** (s * sign[0]),
            gamma=e.gamma ** (s * sign[1]),
            offset=e.offset * s * sign[2],
            blur_px=e.blur_px * s,
            noise=e.noise * s,
            zoom=e.zoom ** (s * sign[3]),
            turn_degrees=e.turn_degrees * s * sign[4],
        )

    return {
        "gain": lambda s, sign: Conditions(gain=e.gain ** (s * sign[0])),
        "gamma": lambda s, sign: Conditions(gamma=e.gamma ** (s * sign[0])),
        "offset": lambda s, sign: Conditions(offset=e.offset * s * sign[0]),
        "light": light,
        "blur": lambda s, sign: Conditions(blur_px=e.blur_px * s),
        "noise": lambda s, sign: Conditions(noise=e.noise * s),
        "scale": lambda s, sign: Conditions(zoom=e.zoom ** (s * sign[0]), turn_degrees=e.turn_degrees * s * sign[1]),
        "all": together,
    }


CHANGES = _changes()
#: Variants of every image, in the order of the features: as it is, copies to fit by, one to calibrate by, the changes.
CHANGED = [(kind, strength) for kind in CHANGES for strength in STRENGTHS]


@dataclass(frozen=True, slots=True)
class RealSurfaces:
    """All images: `clean` [N, D], `copies` [N, C, D] extreme, `even` [N, 1, D], `changed` [N, changes, D]; who is who.

    `surfaces` [N] counts NEU as one surface, `kinds` [N] as six; `groups` [N]; `defective` [N]; `files` [N].
    """

    clean: Grey
    copies: Grey
    even: Grey
    changed: Grey
    surfaces: NDArray[np.str_]
    kinds: NDArray[np.str_]
    groups: NDArray[np.str_]
    defective: NDArray[np.bool_]
    files: NDArray[np.str_]

    def under(self, kind: str, strength: str) -> Grey:
        """[N, D] under one change."""
        return self.changed[:, CHANGED.index((kind, strength))]


def load(settings: RouterSettings) -> RealSurfaces:
    """All images with their features, from the cache where it is there."""
    rows = list_images()
    files = np.array([sample.uri for _, sample in rows])
    key = f"{EMBEDDING_VERSION} {load_backbone().digest} {settings.crop_px} {settings.max_crops} {settings.copies} "
    key += f"{ENVELOPE} {STRENGTHS} {[Path(file).name for file in files]}"
    cache = Path(tempfile.gettempdir()) / f"sbdzsl-real-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not cache.exists():
        print(f"embedding {len(rows)} images in {2 + settings.copies + len(CHANGED)} variants", flush=True)
        with ProcessPoolExecutor(WORKERS, get_context("spawn"), _start, (settings,)) as pool:
            found = np.stack(list(pool.map(_embed, [sample for _, sample in rows], range(len(rows)), chunksize=8)))
        np.save(cache, found)
    features = np.load(cache)
    copies = settings.copies
    kinds = np.array([name for name, _ in rows])
    return RealSurfaces(
        clean=features[:, 0],
        copies=features[:, 1 : 1 + copies],
        even=features[:, 1 + copies : 2 + copies],
        changed=features[:, 2 + copies :],
        surfaces=np.array(["neu" if name.startswith("neu_") else name for name in kinds]),
        kinds=kinds,
        groups=np.array([group_of(sample)[1] for _, sample in rows]),
        defective=np.array([sample.label == "defect" for _, sample in rows]),
        files=files,
    )


def list_images() -> list[tuple[str, Sample]]:
    """Surface (NEU by kind) and sample of each image, in a fixed order."""
    data = shared_data()
    rows = [("dagm_class1", s) for s in _some(datasets.ingest("dagm", str(data / "DAGM2007"), surface="dagm_class1"))]
    rows += [("kolektorsdd", sample) for sample in _some(datasets.ingest("kolektorsdd", str(data / "KolektorSDD")))]
    rows += [
        ("magnetic_tile", sample) for sample in _some(datasets.ingest("magnetic_tile", str(data / "MagneticTile")))
    ]
    for sample in datasets.ingest("neu", str(data / "NEU-DET")).samples:
        rows.append((f"neu_{Path(sample.uri).stem.rpartition('_')[0]}", sample))
    for folder, prefix in (("KTH-TIPS", ""), ("Leather27", "leather27_")):
        rows += [(f"{prefix}{s.surface}", s) for s in datasets.ingest("folder", str(data / folder)).samples]
    return rows


def kth_scale_and_light(file: str) -> tuple[int, int] | None:
    """Scale (1 to 9) and number of pose and light (1 to 9) of an image of KTH-TIPS; None for others."""
    match = re.search(r"scale_(\d+)_im_(\d+)_", file)
    return (int(match[1]), int(match[2])) if match else None


def cluster(features: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """k-means of ten principal components, the best of five starts: number of the cluster of each image."""
    z = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    left, strengths, _ = np.linalg.svd(z, full_matrices=False)
    points = torch.from_numpy(left[:, :10] * strengths[:10])
    best, best_cost = np.zeros(len(z), dtype=np.intp), np.inf
    for _ in range(5):
        centres = points[torch.from_numpy(rng.choice(len(points), count, replace=False))]
        for _ in range(50):
            nearest = torch.cdist(points, centres).argmin(dim=1)
            counts = torch.bincount(nearest, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, nearest, points)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        cost = float((points - centres[nearest]).square().sum())
        if cost < best_cost:
            best, best_cost = nearest.numpy(), cost
    return best


def usable_clusters(clusters: NDArray[np.intp]) -> NDArray[np.intp]:
    """Clusters that are enough to test on and leave enough to train on; the smallest if there is none."""
    sizes = np.bincount(clusters)
    usable = np.flatnonzero((sizes >= 3) & (sizes <= 0.6 * len(clusters)))
    return usable if len(usable) else sizes.argmin(keepdims=True)


def _some(found: datasets.Ingested) -> list[Sample]:
    """Whole groups, drawn, until there are enough images."""
    by_group: dict[str, list[Sample]] = {}
    for sample in found.samples:
        by_group.setdefault(group_of(sample)[1], []).append(sample)
    drawn = np.random.default_rng(0).permutation(sorted(by_group))
    kept: list[Sample] = []
    for group in drawn:
        if len(kept) >= MAX_IMAGES:
            break
        kept += by_group[group]
    return kept


_embedder: Embedder


def _start(settings: RouterSettings) -> None:
    global _embedder  # one a process
    torch.set_num_threads(1)
    _embedder = Embedder(load_backbone(), settings)


def _embed(sample: Sample, number: int) -> Grey:
    image = load_image(sample.image_id, sample.uri, ImageSettings()).image
    if image is None:
        sys.exit(f"cannot read {sample.uri}")
    grey, settings = image.grey(), _embedder.settings
    generator = np.random.default_rng([number, 2])
    variants = [
        grey,
        *changed_copies(grey, ENVELOPE, settings.copies, (number, 0), extreme=True),
        *changed_copies(grey, ENVELOPE, 1, (number, 1), extreme=False),
    ]
    for kind, strength in CHANGED:
        conditions = CHANGES[kind](STRENGTHS[strength], generator.choice([-1.0, 1.0], 5))
        variants.append(conditions.apply(grey, generator))
    return np.stack([_embedder.embed(variant) for variant in variants])
