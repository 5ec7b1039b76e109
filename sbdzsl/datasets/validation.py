"""Is a manifest fit to train on? Every row is read, image and mask, and each one that is not fit says why.

What a row can be rejected for (`CODES`) is public; nothing is left out, repaired or dropped here. A row may be
rejected for several reasons. Images are compared by their bytes: a copy that was stored anew is not found.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sbdzsl import image, lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets.sample import Sample, group_of, load_mask
from sbdzsl.errors import ConfigError, DataError, ImageError, LakeError
from sbdzsl.spreadsheet import rows_csv

#: Reasons of our own; an image that cannot be read, or a mask that is not there, has the code of its error.
CODES = {
    "bad-mask": "the mask cannot be read, has another size than its image, or marks a defect on a benign image",
    "empty-mask": "the label is defect, but the mask marks nothing",
    "lossy-mask": "the mask is a JPEG, whose compression blurs its border",
    "doubled-image": "the same bytes stand in another row with another label, split or surface",
    "split-group": "images of one group are in several splits",
    "no-surface": "no surface is named",
    "no-split": "no split is named",
    "too-few-images": "the surface has too few images to train",
    "suspect": "no rejection: a good image that looks least like the others of its surface",
}

_READERS = 8
_PROGRESS_STEP = 1000


#: Columns of `findings_as`: what a finding is written with.
COLUMNS = ("code", "reason", "surface", "label", "split", "group", "score", "image_id", "uri", "mask_uri")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at: why a row is not fit to train on, or (code `suspect`) an image ranked, not rejected.

    `sample` is None where a whole surface is meant. `score` is that of a suspect.
    """

    surface: str | None
    sample: Sample | None
    code: str
    reason: str
    score: float | None = None

    def describe(self) -> str:
        """One line: the image or the surface, and the reason."""
        return f"{self.surface if self.sample is None else self.sample.uri}: {self.reason}"

    def to_row(self) -> dict[str, Any]:
        """By the names of `COLUMNS`, plain values."""
        sample: dict[str, Any] = {} if self.sample is None else asdict(self.sample)
        own = {"code": self.code, "reason": self.reason, "surface": self.surface, "score": self.score}
        return {name: own.get(name, sample.get(name)) for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class SurfaceCounts:
    """Rows of one surface: all, by label, with a mask that marks a defect, alike, rejected.

    `alike`: copies of an image that agree with it in label and split; they are fit, but teach nothing new.
    """

    surface: str
    images: int
    benign: int
    defect: int
    unlabelled: int
    masked: int
    alike: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Validation:
    """Counts by surface, and the rejections in the order of the rows, those of surfaces last."""

    surfaces: tuple[SurfaceCounts, ...]
    rejections: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as read: digest of the image's bytes (None: not readable), whether its mask marks a defect, and faults."""

    sample: Sample
    digest: str | None
    masked: bool
    faults: tuple[tuple[str, str], ...]


def validate(
    samples: Sequence[Sample],
    settings: ImageSettings,
    min_train: int,
    min_val: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> Validation:
    """Read the image and the mask of every sample and say which rows are not fit to train on.

    A surface with rows in train or val needs `min_train` and `min_val` readable images there. `report` takes lines of
    progress. Raises nothing for what a row can be rejected for.
    """
    rows: list[_Row] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for row in pool.map(lambda sample: _read(sample, settings), samples):
            rows.append(row)
            if len(rows) % _PROGRESS_STEP == 0:
                report(f"{len(rows):,} of {len(samples):,} images read")
    faults: dict[int, list[tuple[str, str]]] = {place: list(row.faults) for place, row in enumerate(rows)}
    alike = _find_copies(rows, faults)
    _find_split_groups(samples, faults)
    rejections = [
        Finding(samples[place].surface, samples[place], code, reason)
        for place, found in faults.items()
        for code, reason in found
    ]
    few = list(_surfaces_with_few(rows, min_train, min_val))
    counts = _counts(rows, {place for place, found in faults.items() if found}, alike)
    return Validation(tuple(counts), (*rejections, *few))


def _read(sample: Sample, settings: ImageSettings) -> _Row:
    faults = [(f"no-{what}", CODES[f"no-{what}"]) for what in ("surface", "split") if getattr(sample, what) is None]
    try:
        data = lake.read_bytes(sample.uri, settings.max_bytes)
        decoded = image.decode(data, settings, sample.bit_depth)
    except (ImageError, LakeError) as error:
        return _Row(sample, None, False, (*faults, (error.code, error.message)))
    masked = False
    try:
        mask = load_mask(sample, (decoded.height, decoded.width))
        masked = mask is not None and bool(mask.any())
        if mask is None and sample.label == "defect" and sample.mask_uri is not None:
            faults.append(
                ("empty-mask", f"{sample.mask_uri}: nothing is marked; it will count as a defect without mask")
            )
        if sample.mask_uri is not None and sample.mask_kind in (None, "pixels", "ellipse"):
            faults += _lossy(sample.mask_uri)
    except (DataError, LakeError) as error:
        faults.append((error.code, error.message))
    return _Row(sample, decoded.digest, masked, tuple(faults))


def _lossy(mask_uri: str) -> Iterator[tuple[str, str]]:
    if lake.read_bytes(mask_uri).startswith(b"\xff\xd8\xff"):
        yield "lossy-mask", f"{mask_uri} is a JPEG, which blurs the border of a mask; store it as PNG"


def _find_copies(rows: Sequence[_Row], faults: dict[int, list[tuple[str, str]]]) -> set[int]:
    """Note the copies of an image that contradict each other; the places of those that only repeat another."""
    copies: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.digest is not None:
            copies[row.digest].append(place)
    alike: set[int] = set()
    for places in copies.values():
        first, *others = places
        for place in others:
            one, other = rows[first].sample, rows[place].sample
            differs = [
                f"{name} {getattr(one, name)} and {getattr(other, name)}"
                for name in ("surface", "label", "split")
                if _meaning(one, name) != _meaning(other, name)
            ]
            if not differs:
                alike.add(place)
            for here, there in ((first, other), (place, one)) if differs else ():
                reason = f"the same bytes as {there.uri}, with {', '.join(differs)}; keep one of them"
                faults[here].append(("doubled-image", reason))
    return alike


def _meaning(sample: Sample, name: str) -> str | None:
    value: str | None = getattr(sample, name)
    return value or "benign" if name == "label" else value  # without a label it is taken as good


def _find_split_groups(samples: Sequence[Sample], faults: dict[int, list[tuple[str, str]]]) -> None:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        # An image that is a group of its own, under its path, may have a namesake in another source.
        if not sample.uri.endswith(f"/{sample.group}"):
            members[group_of(sample)].append(place)
    for (_, group), places in members.items():
        counts = Counter(samples[place].split for place in places)
        if len(counts) > 1:
            shares = ", ".join(f"{count} in {split}" for split, count in counts.items())
            for place in places:
                faults[place].append(("split-group", f"group {group} has {shares}; a group belongs in one split"))


def _surfaces_with_few(rows: Iterable[_Row], min_train: int, min_val: int) -> Iterator[Finding]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.sample.surface is not None and row.sample.split in ("train", "val"):
            counts[row.sample.surface][row.sample.split] += row.digest is not None
    for surface, found in sorted(counts.items()):
        if found["train"] < min_train or found["val"] < min_val:
            yield Finding(
                surface,
                None,
                "too-few-images",
                f"{found['train']} readable training and {found['val']} validation images; at least {min_train} and "
                f"{min_val} are needed",
            )


def _counts(rows: Sequence[_Row], rejected: set[int], alike: set[int]) -> Iterator[SurfaceCounts]:
    for surface in sorted({row.sample.surface or "" for row in rows}):
        own = [place for place, row in enumerate(rows) if (row.sample.surface or "") == surface]
        labels = Counter(rows[place].sample.label for place in own)
        yield SurfaceCounts(
            surface=surface or "(no surface)",
            images=len(own),
            benign=labels["benign"],
            defect=labels["defect"],
            unlabelled=labels[None],
            masked=sum(rows[place].masked for place in own),
            alike=len(alike.intersection(own)),
            rejected=len(rejected.intersection(own)),
        )


def check_form(uri: str) -> Literal["csv", "json"]:
    """The form of findings that a name asks for by its end. Raises `ConfigError`."""
    if uri.lower().endswith(".csv"):
        return "csv"
    if uri.lower().endswith(".json"):
        return "json"
    raise ConfigError("bad-config", f"findings cannot be written as {uri!r}; expected a name in .csv or .json")


def findings_as(findings: Iterable[Finding], form: Literal["csv", "json"]) -> bytes:
    """Findings as a file, UTF-8, columns `COLUMNS`: CSV with a header, or a JSON list of objects."""
    rows = [finding.to_row() for finding in findings]
    if form == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False).encode()
    return rows_csv(COLUMNS, ([row[name] for name in COLUMNS] for row in rows))
