"""DAGM_MIX: benign and defective images of one surface together, for a router that must treat both alike.

Paper, sections 3.2 and 4.1: of ten surfaces eight are seen and two unseen; a seen surface has 300 benign images and,
by augmentation where there are fewer, 300 defective ones, divided 8:2 into train and val; of an unseen surface all
defects and as many benign images are test data. Each image keeps its three labels: surface, benign or defect, mask.

One departure: the paper augments first and divides afterwards, so that copies of one image stand in train and in val.
Here groups are divided first (`build_mix`), only defects of train are augmented (`augment_mix`), val holds originals
alone, and a copy keeps the group of its source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sbdzsl import image, lake
from sbdzsl.datasets.sample import Sample, assign_splits, load_mask, stored_sample
from sbdzsl.errors import DataError

TRAIN_SHARE = 0.8
MIN_GAIN, MAX_GAIN = 0.9, 1.1


def build_mix(samples: Sequence[Sample], unseen: Sequence[str], seed: int, per_label: int = 300) -> list[Sample]:
    """Choose and divide the images of DAGM_MIX from any manifest; splits that it had are replaced.

    Seen surfaces: at most `per_label` benign (and unlabelled) images, and no more defects than benign images where
    there are any, else at most `per_label`; 8:2 by group into train and val. Unseen surfaces: all defects and as many
    benign images (at most `per_label` where there is no defect), all test. Which images are chosen depends on the
    seed and their ids, not on the order. Raises `DataError` for an unseen surface that is not there, a sample without
    surface, or no seen surface left.
    """
    surfaces = sorted({sample.surface for sample in samples if sample.surface is not None})
    nameless = [sample for sample in samples if sample.surface is None]
    missing = sorted(set(unseen) - set(surfaces))
    if missing or nameless:
        reason = f"no surface {', '.join(missing)}" if missing else f"{nameless[0].uri} has no surface"
        raise DataError("bad-manifest", f"{reason}; the manifest has {', '.join(surfaces)}")
    if set(surfaces) <= set(unseen):
        raise DataError("bad-manifest", f"all surfaces are unseen ({', '.join(surfaces)}); at least one must be seen")
    mix: list[Sample] = []
    for surface in surfaces:
        own = [sample for sample in samples if sample.surface == surface]
        defects = [sample for sample in own if sample.label == "defect"]
        others = [sample for sample in own if sample.label != "defect"]
        if surface in unseen:
            chosen = defects + _choose(others, len(defects) or per_label, seed)
            mix += [replace(sample, split="test") for sample in chosen]
        else:
            others = _choose(others, per_label, seed)
            chosen = others + _choose(defects, len(others) or per_label, seed)
            mix += assign_splits(chosen, seed, val_share=1 - TRAIN_SHARE, test_share=0)
    return mix


def augment_mix(mix: Sequence[Sample], out_url: str, seed: int) -> list[Sample]:
    """Bring the train defects of each seen surface up to its train benign images; the mix with the copies.

    A copy is its source turned by a multiple of 90 degrees (180 where the image is not square) and flipped, with
    brightness times 0.9 to 1.1, written as `<surface>/<image id>-<copy>.png` below `out_url`, its depth kept, with a
    mask `...-<copy>_mask.png` (0 and 255) where the source has one. A surface without benign or without defective
    train images gets no copies. The same mix and seed give the same bytes. Raises `DataError` for a float image,
    which PNG cannot hold.
    """
    copies: list[Sample] = []
    for surface in sorted({sample.surface or "" for sample in mix}):
        train = [sample for sample in mix if sample.surface == surface and sample.split == "train"]
        defects = _choose((sample for sample in train if sample.label == "defect"), len(train), seed)
        num_missing = sum(sample.label == "benign" for sample in train) - len(defects)
        for k in range(num_missing if defects else 0):
            copies.append(_write_copy(defects[k % len(defects)], k // len(defects), out_url, seed))
    if not copies:
        return list(mix)
    stored = {file.uri: file for file in lake.list_files(out_url)}
    return [*mix, *(_as_stored(copy, stored[copy.uri]) for copy in copies)]


def _choose(samples: Iterable[Sample], most: int, seed: int) -> list[Sample]:
    """At most so many, drawn at random without regard to the order."""
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}\0{sample.image_id}".encode()).digest())[:most]


def _write_copy(source: Sample, copy: int, out_url: str, seed: int) -> Sample:
    decoded = image.decode(lake.read_bytes(source.uri), bit_depth=source.bit_depth)
    if decoded.pixels.dtype == np.float32:
        raise DataError("bad-manifest", f"{source.uri}: a float image cannot be augmented to PNG; store it as 16-bit")
    key = hashlib.sha256(f"{seed}\0{source.image_id}\0{copy}".encode()).digest()
    rng = np.random.default_rng(list(key))
    mask = load_mask(source, (decoded.height, decoded.width))
    turned = decoded.height == decoded.width
    # Copies of one image walk through the turns in an order of its own, so that they repeat as late as can be.
    turns = [(quarter, flip) for quarter in (range(4) if turned else (0, 2)) for flip in (False, True)][1:]
    first = hashlib.sha256(f"{seed}\0{source.image_id}".encode()).digest()[0]
    quarter, flip = turns[(first + copy) % len(turns)]
    gain = rng.uniform(MIN_GAIN, MAX_GAIN)
    pixels = np.clip(np.round(_turn(decoded.pixels, quarter, flip) * gain), 0, decoded.white)
    stem = lake.join(out_url, source.surface or "", f"{source.image_id}-{copy}")
    _write_png(f"{stem}.png", pixels.astype(decoded.pixels.dtype))
    if mask is not None:
        _write_png(f"{stem}_mask.png", _turn(mask, quarter, flip).astype(np.uint8) * 255)
    return replace(
        source,
        uri=lake.absolute_url(f"{stem}.png"),
        mask_uri=None if mask is None else lake.absolute_url(f"{stem}_mask.png"),
        # A turned box is written as an image of the weak region that it is.
        mask_kind=None if mask is None else "pixels" if source.mask_kind in ("pixels", "rle", "polygon") else "ellipse",
        group=source.group if source.group is not None else source.image_id,
    )


def _turn(pixels: NDArray[Any], quarter: int, flip: bool) -> NDArray[Any]:
    turned = np.rot90(pixels, quarter)
    return np.ascontiguousarray(turned[:, ::-1] if flip else turned)


def _write_png(uri: str, pixels: NDArray[Any]) -> None:
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    lake.write_bytes(uri, bytes(cv2.imencode(".png", stored)[1]))


def _as_stored(copy: Sample, stored: lake.StoredFile) -> Sample:
    fresh = stored_sample(stored)
    return replace(
        copy, image_id=fresh.image_id, size_bytes=stored.size_bytes, etag=stored.etag, modified_at=stored.modified_at
    )
