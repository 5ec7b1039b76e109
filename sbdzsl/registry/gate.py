"""The gate before an alias: is the candidate as good as the bundle that it would replace, on a stated manifest?

Both are evaluated on the same images, by the same code as `sbdzsl evaluate`. Figures of detectors are over the surfaces
that both have learnt, so that a candidate with one surface more is measured like for like; to lose a surface is always
a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import ConfigError, DataError, StoppedError
from sbdzsl.evaluation import evaluate
from sbdzsl.registry.records import Record
from sbdzsl.registry.store import Registry

#: Name of each figure and whether more of it is better. All are shares from 0 to 1.
FIGURES = {
    "mean_ap": True,
    "s": True,
    "u": True,
    "h": True,
    "false_alarm_rate": False,
    "miss_rate": False,
    "error_rate": False,
}


#: Aliases that nothing is judged by, so that a bundle may get them without having been measured.
UNGATED = frozenset({"candidate"})


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both bundles, None where it is not defined. `fall` is how much worse the candidate is."""

    figure: str
    champion: float | None
    candidate: float | None
    fall: float | None
    refused: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate found. `champion` is the digest of the bundle to be replaced, None where there is none.

    `surface_ap` holds the AP of the champion and of the candidate by surface, which refuses nothing: on the few images
    of one surface it moves by itself.
    """

    candidate: str
    champion: str | None
    margin: float
    manifests: tuple[str, ...]
    manifest_digest: str
    num_images: int
    lost_surfaces: tuple[str, ...]
    rows: tuple[Row, ...]
    surface_ap: Mapping[str, tuple[float | None, float | None]]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the candidate is refused, in words; empty if it passes."""
        lost = (f"surface {surface!r} is not known any more" for surface in self.lost_surfaces)
        fallen = (
            f"{row.figure} is worse by {row.fall:.4f}" for row in self.rows if row.refused and row.fall is not None
        )
        return (*lost, *fallen)

    def check(self) -> None:
        """Raises `StoppedError` "gate-refused"."""
        if self.reasons:
            raise StoppedError(
                "gate-refused",
                f"{'; '.join(self.reasons)}; {self.margin:g} is allowed. Nothing was promoted: train a better bundle, "
                "or state a manifest that shows what it is for; where the loss is wanted, --margin allows more of it "
                "and --force with a --reason lets it pass on record",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the record of a promotion."""
        return asdict(self) | {"reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Gate:
        """The inverse of `to_json`. Raises `ValueError`."""
        return _stored.validate_python({name: values.get(name) for name in cls.__slots__})


_stored = pydantic.TypeAdapter(Gate)


def compare(
    candidate: Bundle,
    champion: Bundle | None,
    manifests: Sequence[str],
    margin: float = 0.01,
    policy: ThresholdRule | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
    measured: Mapping[str, Any] | None = None,
) -> Gate:
    """Evaluate both bundles on the `test` rows of the manifests; with no champion the candidate passes.

    A figure may fall by `margin` (0 to 1). `measured` are the figures of the candidate where it was evaluated on these
    manifests by this policy before. Raises `DataError` "too-few-images" where the manifests show nothing, and as
    `evaluate`.
    """
    if not 0 <= margin < 1:
        raise ConfigError("bad-config", f"margin: found {margin}, expected 0 <= margin < 1")
    table = lake.read_manifests(manifests)

    def evaluated(name: str, bundle: Bundle) -> Mapping[str, Any]:
        report(f"evaluating the {name} {bundle.digest[:16]}")
        return evaluate(bundle, table, policy, device).figures

    rated = measured or evaluated("candidate", candidate)
    other = evaluated("champion", champion) if champion else rated
    shared = _seen(rated) & _seen(other)
    new, old = figures(rated, shared), figures(other, shared)
    if all(value is None for name, value in new.items() if name != "error_rate"):
        raise DataError("too-few-images", "the manifests have no labelled test images of a surface that is known")
    if champion is None:
        rows = tuple(Row(name, None, new[name], None, False) for name in FIGURES)
    else:
        rows = tuple(_row(name, old[name], new[name], margin) for name in FIGURES)
    return Gate(
        candidate=candidate.digest,
        champion=champion.digest if champion else None,
        margin=margin,
        manifests=tuple(lake.shown(url) for url in manifests),
        manifest_digest=digest_of(table),
        num_images=rated["num_images"],
        lost_surfaces=tuple(sorted(set(champion.surfaces if champion else ()) - set(candidate.surfaces))),
        rows=rows,
        surface_ap={name: (_ap(other, name) if champion else None, _ap(rated, name)) for name in sorted(shared)},
    )


def promote(
    registry: Registry,
    name: str,
    alias: str,
    by: str,
    reason: str,
    manifests: Sequence[str] = (),
    margin: float = 0.01,
    force: bool = False,
    policy: ThresholdRule | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
    show: Callable[[Gate], None] = lambda _: None,
) -> Record:
    """Promote a bundle of a registry if the gate lets it pass, and return the record; `show` is given what was found.

    Without manifests there is no gate, which only `UNGATED` aliases and `force` allow. Raises `StoppedError`
    "gate-refused", `ConfigError`, and as `compare` and `Registry.promote`: also where the alias moved while the
    bundles were evaluated.
    """
    if force and not reason:
        raise ConfigError("bad-config", "--force is recorded, and needs a --reason")
    if not manifests and not force and alias not in UNGATED:
        raise ConfigError(
            "bad-config",
            f"alias {alias} is gated: state the --manifest on which the bundle must be as good as the one it replaces, "
            "or pass it unmeasured by --force and --reason",
        )
    newest, found = registry.line(alias).newest(), registry.resolve(name)
    after = newest.number if newest else 0
    if newest is not None and newest.bundle == found.digest:
        return newest
    if not manifests:
        return registry.promote(found.digest, alias, by, reason, forced=force, after=after)
    champion = bundles.load(registry.bundle_url(newest.bundle), device) if newest else None
    gate = compare(bundles.load(found.url, device), champion, manifests, margin, policy, device, report)
    show(gate)
    if not force:
        gate.check()
    forced = bool(gate.reasons)
    return registry.promote(found.digest, alias, by, reason, gate=gate.to_json(), forced=forced, after=after)


def figures(found: Mapping[str, Any], surfaces: Iterable[str]) -> dict[str, float | None]:
    """The gate's figures out of those of an evaluation, with the detectors of `surfaces`; None where not defined."""
    rows = [found["surfaces"][surface] for surface in sorted(surfaces)]
    precisions = [row["ap"] for row in rows if row["ap"] is not None]
    return {
        "mean_ap": float(np.mean(precisions)) if precisions else None,
        "s": found["s"],
        "u": found["u"],
        "h": found["h"],
        "false_alarm_rate": _share(rows, "fp", "num_good"),
        "miss_rate": _share(rows, "fn", "num_defect"),
        "error_rate": found["num_errors"] / found["num_images"],
    }


def digest_of(table: pa.Table) -> str:
    """The digest of a manifest, as bundles name the one that they were trained on."""
    return lake.manifest_digest(table, lake.MANIFEST_SCHEMA.names)


def _row(name: str, champion: float | None, candidate: float | None, margin: float) -> Row:
    if champion is None or candidate is None:
        return Row(name, champion, candidate, None, False)
    fall = champion - candidate if FIGURES[name] else candidate - champion
    return Row(name, champion, candidate, fall, fall > margin + 1e-9)


def _share(rows: Sequence[Mapping[str, Any]], count: str, total: str) -> float | None:
    number = sum(row[total] for row in rows)
    return sum(row[count] or 0 for row in rows) / number if number else None


def _seen(found: Mapping[str, Any]) -> set[str]:
    return {surface for surface, row in found["surfaces"].items() if row["seen"]}


def _ap(found: Mapping[str, Any], surface: str) -> float | None:
    ap: float | None = found["surfaces"][surface]["ap"]
    return ap
