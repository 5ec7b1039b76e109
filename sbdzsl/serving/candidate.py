"""Two bundles side by side: the one in force and a candidate, compared on the images of the day.

`shadow`: callers get the verdict of the bundle in force; a share of their images is judged by the candidate afterwards,
behind their backs, and only if there is room. `canary`: a share of the images gets the candidate's verdict. Which ones
follows from their content, so the same image always goes the same way. Either can be ended at any moment: the bundle
in force is never touched.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import Field

from sbdzsl.config import Settings
from sbdzsl.errors import SbdzslError, ServiceError
from sbdzsl.report.drift import References
from sbdzsl.serving.service import Job, Judged, LocalService, Service, ServiceCard
from sbdzsl.serving.settings import ServeSettings
from sbdzsl.verdict import Verdict

#: Images that wait for the candidate at most; more are skipped, and counted.
MAX_SHADOWS = 4

#: Changed verdicts that a report names.
MAX_EXAMPLES = 20


class CandidateSettings(Settings):
    """A bundle to try beside the one in force."""

    bundle: str = Field(description="folder or URL of the candidate")
    mode: Literal["shadow", "canary"] = Field("shadow", description="judge behind the callers' backs, or answer some")
    share: float = Field(1.0, gt=0, le=1, description="share of the images")


@dataclass(slots=True)
class Comparison:
    """What the two said of the same images (shadow), or each of its own (canary)."""

    settings: CandidateSettings
    bundle: str
    since: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    skipped: int = 0
    failed: int = 0
    #: (verdict in force, verdict of the candidate) -> images; shadow.
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: (whose, verdict) -> images; canary.
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def note_pair(self, current: Verdict, other: Verdict) -> None:
        """The two verdicts on one image."""
        self.pairs[current.verdict, other.verdict] += 1
        if (current.verdict, current.surface) != (other.verdict, other.surface):
            one = {
                "image_id": current.image_id,
                "uri": current.uri,
                "current": _said(current),
                "candidate": _said(other),
            }
            self.examples = [*self.examples, one][-MAX_EXAMPLES:]

    def report(self) -> dict[str, Any]:
        """The comparison as plain JSON."""
        compared = sum(self.pairs.values())
        agreed = sum(number for (one, other), number in self.pairs.items() if one == other)
        return {
            **self.settings.model_dump(),
            "digest": self.bundle,
            "since": self.since.isoformat(),
            "compared": compared,
            "same_verdict": agreed,
            "same_verdict_share": agreed / compared if compared else None,
            "pairs": [
                {"current": one, "candidate": other, "images": number}
                for (one, other), number in sorted(self.pairs.items())
            ],
            "answers": [
                {"by": whose, "verdict": verdict, "images": number}
                for (whose, verdict), number in sorted(self.answers.items())
            ],
            "skipped": self.skipped,
            "failed": self.failed,
            "examples": self.examples,
        }


class CandidateService:
    """A `Service` with room for a candidate beside the one in force; one event loop uses it."""

    def __init__(
        self,
        current: Service,
        settings: ServeSettings,
        load: Callable[[str, ServeSettings], LocalService] = LocalService,
    ) -> None:
        self._current = current
        # The candidate may never take more than the one that counts.
        self._settings = settings.model_copy(update={"workers": 1, "threads": 1, "max_queue": MAX_SHADOWS})
        self._load = load
        self._candidate: LocalService | None = None
        self._comparison: Comparison | None = None
        self._previous: str | None = None
        self._shadows: set[asyncio.Task[None]] = set()

    async def inspect(self, job: Job) -> Judged:
        """See `Service.inspect`."""
        candidate, comparison = self._candidate, self._comparison
        if candidate is None or comparison is None or not _is_chosen(job, comparison.settings):
            judged = await self._current.inspect(job)
            if comparison is not None and comparison.settings.mode == "canary":
                comparison.answers["current", judged.verdict.verdict] += 1
            return judged
        if comparison.settings.mode == "canary":
            return await self._answer_by(candidate, comparison, job)
        judged = await self._current.inspect(job)
        if len(self._shadows) >= MAX_SHADOWS:
            comparison.skipped += 1
        else:
            task = asyncio.create_task(_shadow(candidate, comparison, job, judged.verdict))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return judged

    async def _answer_by(self, candidate: LocalService, comparison: Comparison, job: Job) -> Judged:
        try:
            judged = await candidate.inspect(job)
        except SbdzslError:
            # A caller must not suffer from what is only tried.
            comparison.failed += 1
            return await self._current.inspect(job)
        comparison.answers["candidate", judged.verdict.verdict] += 1
        return judged

    async def begin(self, settings: CandidateSettings) -> dict[str, Any]:
        """Load a candidate and compare from now on; one that was there before is ended. Raises as `LocalService`."""
        candidate = await self._load(settings.bundle, self._settings).start()
        await self.end()
        card = await candidate.card()
        self._candidate, self._comparison = candidate, Comparison(settings, card.bundle)
        return self._comparison.report()

    def report(self) -> dict[str, Any]:
        """What the comparison shows so far. Raises `ServiceError` "no-candidate"."""
        if self._comparison is None:
            raise ServiceError("no-candidate", "there is no candidate: PUT /v1/candidate begins one")
        return self._comparison.report()

    async def end(self) -> None:
        """Go on with the bundle in force alone."""
        candidate, self._candidate, self._comparison = self._candidate, None, None
        if candidate is not None:
            await candidate.close()

    async def promote(self) -> ServiceCard:
        """Put the candidate in force. Raises `ServiceError` "no-candidate"."""
        url = self.report()["bundle"]
        card = await self.swap(url)
        await self.end()
        return card

    async def roll_back(self) -> ServiceCard:
        """Put the bundle in force again that was there before the last swap. Raises `ServiceError` "no-candidate"."""
        if self._previous is None:
            raise ServiceError("no-candidate", "no other bundle was in force since this service was started")
        return await self.swap(self._previous)

    async def card(self) -> ServiceCard:
        """See `Service.card`."""
        return await self._current.card()

    async def reference(self) -> tuple[str, References]:
        """See `Service.reference`."""
        return await self._current.reference()

    async def check(self) -> None:
        """See `Service.check`."""
        await self._current.check()

    async def swap(self, bundle_url: str) -> ServiceCard:
        """See `Service.swap`."""
        before = (await self._current.card()).bundle_url
        card = await self._current.swap(bundle_url)
        self._previous = before
        return card

    async def close(self) -> None:
        """See `Service.close`."""
        await self.end()
        await self._current.close()


async def _shadow(candidate: LocalService, comparison: Comparison, job: Job, current: Verdict) -> None:
    try:
        judged = await candidate.inspect(replace(job, with_overlay=False, deadline=float("inf")))
    except SbdzslError:
        comparison.failed += 1
        return
    comparison.note_pair(current, judged.verdict)


def _is_chosen(job: Job, settings: CandidateSettings) -> bool:
    place = int.from_bytes(hashlib.blake2b(job.content, digest_size=8).digest(), "big") / 2**64
    return place < settings.share


def _said(verdict: Verdict) -> dict[str, Any]:
    names = ("verdict", "surface", "defect_score", "defect_threshold", "unseen_score", "unseen_threshold", "error_code")
    return {name: getattr(verdict, name) for name in names}
