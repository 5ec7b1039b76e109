"""The report of a training: one HTML file that says what was trained on what, how good it is, and what became of it.

The page needs nothing beside itself: no script, no font, no other host. Names of surfaces and files, and what stands in
settings, are hostile input: the template escapes everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import pyarrow as pa
from markupsafe import Markup
from pydantic import BaseModel

from sbdzsl import __version__, lake
from sbdzsl.bundle import Bundle, SurfaceDetector
from sbdzsl.calibration import Threshold
from sbdzsl.config import ThresholdRule
from sbdzsl.detector_figures import SurfaceScores
from sbdzsl.errors import DataError
from sbdzsl.registry import Record
from sbdzsl.registry.gate import Gate
from sbdzsl.report.cards import data_url
from sbdzsl.report.detector_plots import (
    MAX_ERRORS,
    draw_precision_recall,
    draw_scores,
    errors,
    picture_errors,
)
from sbdzsl.report.html import environment
from sbdzsl.report.label_budget import LabelBudget, label_budgets
from sbdzsl.report.overlay import GalleryImage, encode_thumbnail
from sbdzsl.report.plots import PAGE, svg
from sbdzsl.sbdd.curves import draw_curves
from sbdzsl.surface_training import read_curves

#: Policies that need no number of the user's own.
_NAMED = (ThresholdRule("false-alarm-rate"), ThresholdRule("max-f1"), ThresholdRule("zero-misses"))


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step of the run: when it ended (UTC), and the seconds that it took."""

    step: str
    finished_at: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of the bundle in a registry.

    `gate` is None where there was nothing to compare since the alias pointed to this bundle already; `record` is the
    one that points to it, None where the gate refused it.
    """

    registry: str
    alias: str
    margin: float
    gate: Gate | None
    record: Record | None


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a training was asked for, and what happened. `promotion` is None where no registry was named.

    `training` and `evaluation` are the manifests; `policy` is the one that the figures are at, None the bundle's own.
    `sweep` is where the sweep that found the settings lies, None if there was none. `outcome` stands for what the page
    tells of: it is noted in the page, unseen.
    """

    run: str
    bundle_url: str
    manifests: tuple[str, ...]
    evaluation_manifests: tuple[str, ...]
    evaluation_digest: str
    training: pa.Table
    evaluation: pa.Table
    policy: ThresholdRule | None
    steps: tuple[StepTime, ...]
    sweep: str | None
    outcome: str
    promotion: Promotion | None


@dataclass(frozen=True, slots=True)
class _Setting:
    """A setting that is not the default."""

    name: str
    value: str
    default: str


@dataclass(frozen=True, slots=True)
class _PolicyRow:
    """A threshold by one policy; `reason` says why there is none."""

    policy: str
    in_force: bool
    threshold: Threshold | None = None
    test_false_alarms: int = 0
    test_misses: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Shot:
    """A wrongly judged image; `source` is a data URL."""

    kind: str
    name: str
    folder: str
    source: str


@dataclass(frozen=True, slots=True)
class _Change:
    """What all amounts of one change do: the lowest AP, the most false alarms and misses."""

    change: str
    amounts: str
    ap: float | None
    fp: int
    fn: int


@dataclass(frozen=True, slots=True)
class _Section:
    """Everything of one surface."""

    surface: str
    figures: Mapping[str, Any] | None
    budget: LabelBudget
    curves: Markup | None
    score_plots: tuple[Markup, ...]
    policies: tuple[_PolicyRow, ...]
    errors: tuple[_Shot, ...]
    num_errors: int
    robustness: tuple[_Change, ...]
    robustness_on_test: bool


def write_training_report(
    facts: TrainingFacts,
    bundle: Bundle,
    figures: Mapping[str, Any],
    scores: Mapping[str, SurfaceScores],
    target: str,
) -> None:
    """Write the page to the file or URL `target`.

    `figures` and `scores` are what `evaluation.read` gives. Images of errors are read again: those that are gone are
    counted and not shown. Raises `LakeError`.
    """
    budgets = label_budgets(facts.training, facts.evaluation, bundle, facts.policy)
    sections = [
        _section(number, surface, facts, bundle, figures, scores.get(surface), budgets[surface])
        for number, surface in enumerate(bundle.surfaces)
    ]
    page = (
        environment()
        .get_template("training.html.j2")
        .render(
            facts=facts,
            promotion=facts.promotion,
            fate=_fate(facts.promotion),
            figures=figures,
            made=bundle.card["provenance"],
            card=bundle.card,
            digest=bundle.digest,
            created_at=datetime.fromisoformat(bundle.card["created_at"]),
            router=bundle.router.calibrated,
            changed=list(_changed(bundle.settings)),
            sections=sections,
            code_version=__version__,
        )
    )
    lake.write_bytes(target, page.encode())


def _fate(promotion: Promotion | None) -> str:
    """What became of the bundle, in a sentence."""
    if promotion is None:
        return "No registry was named, so nothing was to be promoted."
    alias = promotion.alias
    if promotion.record is None:
        reasons = "; ".join(promotion.gate.reasons) if promotion.gate is not None else ""
        return f"The gate refused it: {reasons}. Nothing was promoted: {alias} is what it was."
    if promotion.gate is None:
        return f"{alias} pointed to this very bundle already, by record {promotion.record.number}."
    return f"It passed the gate and was promoted: {alias}, record {promotion.record.number}."


def _changed(settings: BaseModel) -> Iterator[_Setting]:
    """Settings that are not the defaults, by dotted name."""
    given, defaults = (
        dict(_flat(settings.model_dump(mode="json"))),
        dict(_flat(type(settings)().model_dump(mode="json"))),
    )
    for name, value in given.items():
        if name not in defaults or defaults[name] != value:
            yield _Setting(name, _word(value), _word(defaults.get(name)))


def _flat(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(value, dict):
            yield from _flat(value, full)
        else:
            yield full, value


def _word(value: Any) -> str:
    return "none" if value in (None, [], ()) else str(value)


def _section(
    number: int,
    surface: str,
    facts: TrainingFacts,
    bundle: Bundle,
    figures: Mapping[str, Any],
    scores: SurfaceScores | None,
    budget: LabelBudget,
) -> _Section:
    entry, found = bundle.detectors[surface], figures["surfaces"].get(surface, {})
    history = read_curves(facts.bundle_url, surface)
    curves = svg(lambda figure: draw_curves(figure, history), f"curves-{number}", (4.8, 3.6)) if history else None
    measured = found.get("robustness")
    is_tested = scores is not None and len(scores.samples) > 0
    wrong = errors(scores) if scores is not None else []
    return _Section(
        surface=surface,
        figures=found if is_tested else None,
        budget=budget,
        curves=None if curves is None else Markup(curves),
        score_plots=_score_plots(number, scores) if scores is not None and is_tested else (),
        policies=tuple(_policies(entry, facts.policy, scores)),
        errors=_shots(scores, wrong[:MAX_ERRORS], bundle) if scores is not None else (),
        num_errors=len(wrong),
        robustness=tuple(_condensed(measured or [asdict(row) for row in entry.robustness])),
        robustness_on_test=bool(measured),
    )


def _score_plots(number: int, scores: SurfaceScores) -> tuple[Markup, ...]:
    """Precision over recall, and the histogram of scores."""
    given = scores.labels, scores.scores, scores.threshold.value, PAGE
    recall = svg(lambda figure: draw_precision_recall(figure, *given), f"recall-{number}", (4.8, 3.6))
    return Markup(recall), Markup(svg(lambda figure: draw_scores(figure, *given), f"scores-{number}", (4.8, 3.6)))


def _shots(scores: SurfaceScores, places: Sequence[int], bundle: Bundle) -> tuple[_Shot, ...]:
    found = []
    for one in picture_errors(scores, places, bundle):
        folder, _, name = one.uri.rpartition("/")
        source = data_url(GalleryImage(encode_thumbnail(one.picture), "image/jpeg"))
        found.append(_Shot(one.kind, name, f"{folder}/", source))
    return tuple(found)


def _policies(
    entry: SurfaceDetector, policy: ThresholdRule | None, scores: SurfaceScores | None
) -> Iterator[_PolicyRow]:
    """The threshold in force, and those of the named policies that it is not one of."""
    in_force = entry.threshold(policy)
    yield _row(in_force, scores, in_force=True)
    for rule in _NAMED:
        try:
            threshold = entry.threshold(rule)
        except DataError as error:
            yield _PolicyRow(str(rule), in_force=False, reason=error.message)
            continue
        if threshold.policy != in_force.policy:
            yield _row(threshold, scores, in_force=False)


def _row(threshold: Threshold, scores: SurfaceScores | None, *, in_force: bool) -> _PolicyRow:
    if scores is None:
        return _PolicyRow(threshold.policy, in_force, threshold)
    called, labels = scores.scores > threshold.value, scores.labels
    alarms, misses = int((called & ~labels).sum()), int((~called & labels).sum())
    return _PolicyRow(threshold.policy, in_force, threshold, alarms, misses)


def _condensed(rows: Sequence[Mapping[str, Any]]) -> Iterator[_Change]:
    """One row a change: sixteen of each surface would hide what matters."""
    for change, group in groupby(rows, key=lambda row: str(row["change"])):
        own = list(group)
        precisions = [row["ap"] for row in own if row["ap"] is not None]
        amounts, unit = [row["amount"] for row in own], own[0]["unit"]
        reach = f"{min(amounts):g} to {max(amounts):g} {unit}" if unit else ""
        yield _Change(
            change=change,
            amounts=reach,
            ap=min(precisions, default=None),
            fp=max(row["fp"] for row in own),
            fn=max(row["fn"] for row in own),
        )
