"""Data sets: readers of public layouts and of folders, splits, masks, DAGM_MIX, and the drawn lake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sbdzsl.datasets import dagm, folder, kolektorsdd, magnetic_tile, neu
from sbdzsl.datasets.sample import (
    Sample,
    assign_splits,
    load_mask,
    samples_from_table,
    samples_to_table,
    split_table,
)
from sbdzsl.errors import ConfigError

__all__ = [
    "ADAPTERS",
    "Ingested",
    "Sample",
    "assign_splits",
    "ingest",
    "load_mask",
    "samples_from_table",
    "samples_to_table",
    "split_table",
]

Adapter = Callable[[str, "str | None"], list[Sample]]

#: Name of each layout and what reads it: source URL, surface -> samples.
ADAPTERS: dict[str, Adapter] = {
    "dagm": dagm.scan,
    "kolektorsdd": kolektorsdd.scan,
    "magnetic_tile": magnetic_tile.scan,
    "neu": neu.scan,
    "folder": folder.scan,
}


@dataclass(frozen=True, slots=True)
class Ingested:
    """Samples with splits, and a line a surface on where its splits come from."""

    samples: list[Sample]
    notes: list[str]


def ingest(
    adapter: str,
    source: str,
    surface: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Ingested:
    """Read `source` in the layout `adapter` and give every sample a split.

    Where the layout has an official test set and no fold is asked for, it is kept and val is a share of the official
    train; elsewhere `assign_splits` decides. Raises
    `ConfigError` for an unknown adapter or a bad fold, `LakeError` and `DataError` from reading.
    """
    if adapter not in ADAPTERS:
        raise ConfigError("bad-config", f"unknown layout {adapter!r}; expected one of {', '.join(ADAPTERS)}")
    samples = ADAPTERS[adapter](source, surface)
    official = {sample.surface for sample in samples if sample.split == "test"} if fold is None else set()
    own = assign_splits([s for s in samples if s.surface not in official], seed, fold=fold, folds=folds)
    train = assign_splits([s for s in samples if s.surface in official and s.split != "test"], seed, test_share=0)
    split = {sample.image_id: sample for sample in (*own, *train)}
    return Ingested(
        [split.get(sample.image_id, sample) for sample in samples], _notes(samples, official, fold, folds, seed)
    )


def _notes(
    samples: Sequence[Sample], official: set[str | None], fold: int | None, folds: int | None, seed: int
) -> list[str]:
    lines = []
    for surface in dict.fromkeys(sample.surface for sample in samples):
        if surface in official:
            lines.append(f"{surface}: official test set; val is a fifth of the official train, by seed {seed}")
        elif fold is not None:
            lines.append(
                f"{surface}: fold {fold} of {folds} is test; val is a fifth of the rest, by group, seed {seed}"
            )
        else:
            lines.append(
                f"{surface}: split of our own by group, seed {seed}: no official one, or it is not complete here"
            )
    return lines
