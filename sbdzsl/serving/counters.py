"""Counters of a shift: what was inspected and what was not. Pure.

`missed` are numbers that a camera skipped and that have not come since: a camera numbers its images, so an image that
never arrived leaves a gap. Far jumps and new beginnings are a camera that numbers afresh, which is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

VERDICTS = ("good", "defect", "unseen", "error")

#: A jump by more than this, forward or back, is a new numbering and no gap.
MAX_GAP = 10_000
#: Missing numbers of a camera that may still come, at most; older ones stay missed.
MAX_AWAITED = 1_000


@dataclass(slots=True)
class _Numbering:
    last: int
    awaited: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """Counts since `since` (seconds since 1970), when `reset_by` put them to zero for `reset_because`.

    `through` is the last event that is counted. `late` answers took longer than the budget, `refused` requests got no
    verdict at all; the latter leave no event, so a crash loses those since the last snapshot.
    """

    since: float
    through: int = 0
    reset_by: str | None = None
    reset_because: str | None = None
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    missed: int = 0
    renumbered: int = 0
    late: int = 0
    refused: int = 0
    numbering: dict[str, _Numbering] = field(default_factory=dict)

    def take(self, number: int, document: Mapping[str, Any], is_late: bool) -> None:
        """Count one answer, event `number`."""
        self.through = number
        self.verdicts[document["verdict"]] += 1
        self.late += is_late
        if document["sequence"] is not None:
            self._follow(document["camera"] or "", document["sequence"])

    def to_json(self) -> dict[str, Any]:
        """What people see: `inspected` and the counts, one by one."""
        shown = {name: getattr(self, name) for name in ("since", "reset_by", "reset_because", "through")}
        counts = {name: getattr(self, name) for name in ("missed", "renumbered", "late", "refused")}
        return shown | {"inspected": sum(self.verdicts.values())} | self.verdicts | counts

    def snapshot(self) -> dict[str, Any]:
        """All of it, as plain JSON for the journal."""
        return asdict(self)

    @classmethod
    def restored(cls, document: Mapping[str, Any]) -> Counters:
        """The counters of a snapshot."""
        known = {name: document[name] for name in cls.__slots__}
        numbering = {camera: _Numbering(**one) for camera, one in document["numbering"].items()}
        return cls(**known | {"numbering": numbering})

    def _follow(self, camera: str, sequence: int) -> None:
        seen = self.numbering.get(camera)
        if seen is None:
            self.numbering[camera] = _Numbering(sequence)
            return
        step = sequence - seen.last
        if abs(step) > MAX_GAP or (step < 0 and sequence <= 1):
            self.renumbered += 1
            self.numbering[camera] = _Numbering(sequence)
        elif step > 0:
            self.missed += step - 1
            seen.awaited = [*seen.awaited, *range(seen.last + 1, sequence)][-MAX_AWAITED:]
            seen.last = sequence
        elif sequence in seen.awaited:
            self.missed -= 1
            seen.awaited.remove(sequence)
