"""The steps of a run, in order, each done once.

    tune -> train -> evaluate -> gate -> promote -> report

Without a sweep there is no tuning, without a registry neither gate nor promotion; the report is written in any case,
and says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sbdzsl import __version__, evaluation, lake
from sbdzsl import bundle as bundles
from sbdzsl.bundle import Bundle
from sbdzsl.config import TrainSettings, parse
from sbdzsl.datasets.sample import samples_from_table
from sbdzsl.detector_figures import SurfaceScores
from sbdzsl.errors import BundleError, ConfigError, DataError, PipelineError
from sbdzsl.pipeline.journal import Report, RunFolder, StepRecord
from sbdzsl.pipeline.settings import PipelineSettings
from sbdzsl.registry import Record, Registry, gate
from sbdzsl.registry.gate import Gate
from sbdzsl.report.training_page import Promotion, StepTime, TrainingFacts, write_training_report
from sbdzsl.surface_training import remove_unfinished

#: Trains on a manifest into a URL, going on from what a killed training left there.
Train = Callable[[pa.Table, str, TrainSettings], Bundle]
#: Searches settings on a manifest, starting from those given, and leaves what it found at a URL.
Tune = Callable[[pa.Table, str, TrainSettings], TrainSettings]

SWEEP, BUNDLE, EVALUATION, REPORT = "tune", "bundle", "evaluation", "report.html"

#: Settings of a sweep that its result does not follow from.
HOW_A_SWEEP_IS_RUN = {"concurrent", "cpus_per_trial", "gpus_per_trial", "max_minutes", "max_failed", "storage", "study"}

#: Judged images between two lines of progress.
IMAGES_A_LINE = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `gate` is None where nothing was compared, `record` where nothing was promoted."""

    bundle_url: str
    digest: str
    figures: Mapping[str, Any]
    gate: Gate | None
    record: Record | None
    report_url: str

    def check(self) -> None:
        """Raises `StoppedError` "gate-refused" where the gate refused the bundle."""
        if self.gate is not None and self.record is None:
            self.gate.check()


def run(
    settings: PipelineSettings,
    train: Train,
    by: str,
    reason: str = "",
    device: str = "cpu",
    report: Report = print,
    tune: Tune | None = None,
) -> Outcome:
    """Do what is not done yet of a run, and write its report.

    `by` and `reason` stand in the record of the promotion. A refusal by the gate is an outcome, not an error: see
    `Outcome.check`. Killed at any moment, the same call ends in the same bundle, promoted once. Raises `PipelineError`
    "other-run" where the folder was begun for other data or settings, and what the steps do.
    """
    if settings.out is None or not settings.manifests:
        raise ConfigError("bad-config", "a run needs the manifests to train on, and a folder or URL `out` of its own")
    if settings.tune is not None and tune is None:
        raise ConfigError("bad-config", "tune: a sweep runs on a cluster; give --cluster, or leave it out")
    tables = _Tables.read(settings)
    folder = RunFolder(settings.out, report)
    folder.begin(_purpose(settings, tables), _said(settings))
    steps = _Steps(settings, tables, folder, train, tune, device, report)
    return steps.run(by, reason)


@dataclass(frozen=True, slots=True)
class _Tables:
    """The manifests: what is trained on, and what the bundle is measured on."""

    training: pa.Table
    evaluation: pa.Table
    evaluation_urls: tuple[str, ...]

    @classmethod
    def read(cls, settings: PipelineSettings) -> _Tables:
        training = lake.read_manifests(settings.manifests)
        urls = settings.evaluation.manifests
        if not urls:
            return cls(training, training, settings.manifests)
        table = lake.read_manifests(urls)
        _refuse_known(training, table)
        return cls(training, table, urls)


def _refuse_known(training: pa.Table, measured_on: pa.Table) -> None:
    """Raises `DataError` where a test image of another manifest was trained on: it would flatter the bundle."""
    learnt = {sample.uri for sample in samples_from_table(training) if sample.split in ("train", "val")}
    known = [
        sample.uri for sample in samples_from_table(measured_on) if sample.split == "test" and sample.uri in learnt
    ]
    if known:
        raise DataError(
            "bad-manifest",
            f"{len(known)} test images of the evaluation are train or val images of the training, such as {known[0]}; "
            "figures on them would flatter: leave them out of one of the two",
        )


def _purpose(settings: PipelineSettings, tables: _Tables) -> dict[str, Any]:
    """What the bundle and its figures follow from: it may not change within a run."""
    return {
        "code_version": __version__,
        "manifest": gate.digest_of(tables.training),
        "evaluation_manifest": gate.digest_of(tables.evaluation),
        "unseen": sorted(settings.unseen),
        "seed": settings.seed,
        "allow_missing": settings.allow_missing,
        "train": settings.train.model_dump(mode="json"),
        "tune": settings.tune and settings.tune.model_dump(mode="json", exclude=HOW_A_SWEEP_IS_RUN),
        "evaluation": settings.evaluation.model_dump(mode="json", exclude={"manifests"}),
    }


def _said(settings: PipelineSettings) -> dict[str, Any]:
    return {
        "manifests": [lake.shown(url) for url in settings.manifests],
        "evaluation_manifests": [lake.shown(url) for url in settings.evaluation.manifests],
    }


@dataclass(frozen=True, slots=True)
class _Steps:
    settings: PipelineSettings
    tables: _Tables
    folder: RunFolder
    train: Train
    tune: Tune | None
    device: str
    report: Report

    def run(self, by: str, reason: str) -> Outcome:
        trained = self._train(self._recipe())
        bundle = self._bundle(trained)
        evaluated = self._evaluate(bundle, trained)
        figures, scores = evaluation.read(
            self.folder.path(EVALUATION), bundle, self.tables.evaluation, self.settings.evaluation.policy
        )
        found, record = None, None
        if self.settings.promotion.registry is not None:
            found, record = self._promote(bundle, figures, evaluated, by, reason)
        self._report(bundle, figures, scores, found, record)
        return Outcome(
            bundle_url=self.folder.path(BUNDLE),
            digest=bundle.digest,
            figures=figures,
            gate=found,
            record=record,
            report_url=self.folder.path(REPORT),
        )

    def _recipe(self) -> TrainSettings:
        """The settings to train by: those of the run, or the best that a sweep finds from there."""
        base, tune = self.settings.train, self.tune
        if self.settings.tune is None or tune is None:
            return base

        def work() -> dict[str, Any]:
            found = tune(self.tables.training, self.folder.path(SWEEP), base)
            return {"recipe": found.model_dump(mode="json")}

        sweep = self.settings.tune.model_dump(mode="json", exclude=HOW_A_SWEEP_IS_RUN)
        went_in = {"manifest": gate.digest_of(self.tables.training), "settings": _digest(base), "sweep": sweep}
        return parse(TrainSettings, self.folder.step("tune", went_in, work).came_out["recipe"], "recipe")

    def _train(self, recipe: TrainSettings) -> StepRecord:
        url = self.folder.path(BUNDLE)

        def work() -> dict[str, Any]:
            # A bundle without a record is that of a start that died between the two.
            if not bundles.exists(url):
                self.train(self.tables.training, url, recipe)
            card = bundles.read_card(url)
            self._require_ours(card, recipe)
            remove_unfinished(url, card["detectors"])
            missing = card["provenance"].get("missing", {})
            return {"bundle": bundles.digest_of(card), "surfaces": sorted(card["detectors"]), "missing": missing}

        went_in = {"manifest": gate.digest_of(self.tables.training), "settings": _digest(recipe)}
        return self.folder.step("train", went_in, work, lambda: bundles.exists(url))

    def _require_ours(self, card: Mapping[str, Any], recipe: TrainSettings) -> None:
        """Raises `BundleError` where somebody else has put a bundle into the run's folder."""
        made, settings = card["provenance"], self.settings
        found = (made.get("data_digest"), made.get("seed"), made.get("held_out_as_unseen"), card["settings"])
        dumped = recipe.model_dump(mode="json")
        if found != (gate.digest_of(self.tables.training), settings.seed, sorted(settings.unseen), dumped):
            raise BundleError(
                "bundle-exists",
                f"{self.folder.path(BUNDLE)} holds a bundle that this run has not trained; remove it, or give the run "
                "another folder",
            )

    def _bundle(self, trained: StepRecord) -> Bundle:
        found = bundles.load(self.folder.path(BUNDLE), self.device)
        if found.digest != trained.came_out["bundle"]:
            raise PipelineError(
                "damaged-run",
                f"{self.folder.path(BUNDLE)} holds bundle {found.digest[:16]}, the run trained "
                f"{trained.came_out['bundle'][:16]}; put that one back, or begin a run in another folder",
            )
        return found

    def _evaluate(self, bundle: Bundle, trained: StepRecord) -> StepRecord:
        chosen, url = self.settings.evaluation, self.folder.path(EVALUATION)

        def work() -> dict[str, Any]:
            found = evaluation.evaluate(
                bundle,
                self.tables.evaluation,
                chosen.policy,
                self.device,
                self._show_progress,
                with_robustness=chosen.robustness,
            )
            evaluation.write(found, url)
            kept = {name: found.figures[name] for name in ("num_images", "num_errors", "s", "u", "h")}
            return kept | {"mean_ap": found.figures["mean"]["ap"]}

        went_in = {
            "after": trained.seal,
            "manifest": gate.digest_of(self.tables.evaluation),
            "policy": chosen.policy and str(chosen.policy),
            "robustness": chosen.robustness,
        }
        files = [lake.join(url, name) for name in evaluation.FILES]
        return self.folder.step("evaluate", went_in, work, lambda: all(lake.exists(file) for file in files))

    def _show_progress(self, done: int, of: int) -> None:
        if done % IMAGES_A_LINE == 0 or done == of:
            self.report(f"  {done:,} of {of:,} test images judged")

    def _promote(
        self, bundle: Bundle, figures: Mapping[str, Any], evaluated: StepRecord, by: str, reason: str
    ) -> tuple[Gate | None, Record | None]:
        """What the gate found, None where it had nothing to do, and the record that points to the bundle, if one does.

        The registry holds the truth, our record is a note of it: a start may have died between the two.
        """
        chosen = self.settings.promotion
        registry = Registry(chosen.registry or "")
        history = registry.history(chosen.alias)
        went_in = {"after": evaluated.seal, "registry": lake.shown(registry.url), "alias": chosen.alias}
        settled = self._settled(history, bundle.digest, self.folder.find("promote", went_in))
        found: Gate | None = None
        if settled is None:
            found = self._gate(bundle, figures, evaluated, registry, history)
            if found.reasons:
                return found, None
        elif settled.gate is not None and self._is_ours(settled):
            found = Gate.from_json(settled.gate)
        record = settled

        def work() -> dict[str, Any]:
            nonlocal record
            if record is None:
                assert found is not None
                record = registry.promote(
                    registry.push(self.folder.path(BUNDLE)),
                    chosen.alias,
                    by,
                    reason or f"pipeline {self.folder.url}",
                    gate=found.to_json() | {"run": self.folder.seal},
                    after=len(history),
                )
            return {"record": record.number, "by": record.by, "replaces": record.replaces}

        number = self.folder.step("promote", went_in, work).came_out["record"]
        return found, next(one for one in registry.history(chosen.alias) if one.number == number)

    def _settled(self, history: Sequence[Record], digest: str, noted: StepRecord | None) -> Record | None:
        """The record by which the alias got this run's bundle, or points to it already; None where it is to be decided.

        A promotion of this run stands, also where the alias has moved on since: nothing is promoted twice.
        """
        ours = next((one for one in history if self._is_ours(one)), None)
        if ours is None and noted is not None:
            ours = next((one for one in history if one.number == noted.came_out["record"]), None)
        in_force = history[-1] if history and history[-1].bundle == digest else None
        return ours or in_force

    def _is_ours(self, record: Record) -> bool:
        return record.gate is not None and record.gate.get("run") == self.folder.seal

    def _gate(
        self,
        bundle: Bundle,
        figures: Mapping[str, Any],
        evaluated: StepRecord,
        registry: Registry,
        history: Sequence[Record],
    ) -> Gate:
        """Compare with the bundle in force: what was found against one says nothing about the next."""
        chosen = self.settings.promotion
        newest = history[-1] if history else None

        def work() -> dict[str, Any]:
            champion = bundles.load(registry.bundle_url(newest.bundle), self.device) if newest else None
            return gate.compare(
                bundle,
                champion,
                self.tables.evaluation_urls,
                chosen.margin,
                self.settings.evaluation.policy,
                self.device,
                self.report,
                measured=figures,
            ).to_json()

        went_in = {
            "after": evaluated.seal,
            "registry": lake.shown(registry.url),
            "alias": chosen.alias,
            "margin": chosen.margin,
            "against": newest.seal if newest else None,
        }
        return Gate.from_json(self.folder.step("gate", went_in, work).came_out)

    def _report(
        self,
        bundle: Bundle,
        figures: Mapping[str, Any],
        scores: Mapping[str, SurfaceScores],
        found: Gate | None,
        record: Record | None,
    ) -> None:
        chosen = self.settings.promotion
        steps = self.folder.history()
        times = tuple(StepTime(one.step, one.finished_at, one.seconds) for one in steps if one.step != "report")
        facts = TrainingFacts(
            run=self.folder.url,
            bundle_url=self.folder.path(BUNDLE),
            manifests=tuple(lake.shown(url) for url in self.settings.manifests),
            evaluation_manifests=tuple(lake.shown(url) for url in self.tables.evaluation_urls),
            evaluation_digest=gate.digest_of(self.tables.evaluation),
            training=self.tables.training,
            evaluation=self.tables.evaluation,
            policy=self.settings.evaluation.policy,
            steps=times,
            sweep=self.folder.path(SWEEP) if self.settings.tune is not None else None,
            outcome=self.folder.last,
            promotion=None
            if chosen.registry is None
            else Promotion(lake.shown(chosen.registry), chosen.alias, chosen.margin, found, record),
        )

        url = self.folder.path(REPORT)

        def work() -> dict[str, Any]:
            write_training_report(facts, bundle, figures, scores, url)
            return {"report": REPORT}

        def is_there() -> bool:
            # There may be the page of another outcome, such as at another margin.
            return lake.exists(url) and facts.outcome.encode() in lake.read_bytes(url)

        self.folder.step("report", {"after": facts.outcome}, work, is_there)


def _digest(settings: Any) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
