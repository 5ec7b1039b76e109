"""Who trains which surface, how far it is, and what became of it: the queue that the workers of a training go down.

One such board lives in an actor of its own. It knows nothing of Ray, and imports no net.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: So many processes may die over one surface; then it is given up, and the others go on.
MAX_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a surface's training is: mean `loss` of the last epoch, the last validation's AP, seconds so far."""

    epoch: int
    epochs: int
    loss: float
    val_ap: float | None
    seconds: float

    def __str__(self) -> str:
        ap = "" if self.val_ap is None else f", validation AP {self.val_ap:.3f}"
        left = self.seconds / self.epoch * (self.epochs - self.epoch)
        return f"epoch {self.epoch}/{self.epochs}, loss {self.loss:.3f}{ap}, {left:.0f} s left"


@dataclass(slots=True)
class _Entry:
    state: Literal["waiting", "training", "trained", "failed"] = "waiting"
    group: str = ""
    rank: int = -1
    deaths: int = 0
    standing: Standing | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """What a driver learns at a look: new `lines` of the workers, the `table` of all surfaces, and how each ended.

    `failed` says why. `changed` counts what has happened so far, so that a table need not be printed twice.
    """

    lines: tuple[str, ...]
    table: tuple[str, ...]
    trained: tuple[str, ...]
    failed: Mapping[str, str]
    unfinished: tuple[str, ...]
    changed: int


@dataclass(slots=True)
class Board:
    """The surfaces of a training in the order in which they are begun. `stop_at`: seconds of the clock, None for never.

    A worker is named by its `rank` in its `group`. A group is started as a whole: once a worker of another group asks,
    no process of the one before is left.
    """

    surfaces: Sequence[str]
    stop_at: float | None = None
    _entries: dict[str, _Entry] = field(init=False)
    _lines: list[str] = field(init=False, default_factory=list)
    _changed: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._entries = {surface: _Entry() for surface in self.surfaces}

    def take(self, rank: int, group: str) -> str | None:
        """The next surface for this worker; None where there is none, or the time is up."""
        self._release_from_others(group)
        if self._is_late():
            return None
        for surface, entry in self._entries.items():
            if entry.state == "waiting":
                entry.state, entry.rank, entry.group = "training", rank, group
                self._changed += 1
                return surface
        return None

    def note(self, surface: str, standing: Standing) -> bool:
        """Write down how far a surface is; whether its training is to go on."""
        entry = self._entries[surface]
        # Most epochs have no validation: the last one stays in the table.
        if standing.val_ap is None and entry.standing is not None:
            standing = Standing(standing.epoch, standing.epochs, standing.loss, entry.standing.val_ap, standing.seconds)
        entry.standing = standing
        self._changed += 1
        return not self._is_late()

    def say(self, line: str) -> None:
        """A line for whoever started the training."""
        self._lines.append(line)

    def finish(self, surface: str) -> None:
        """The surface is trained, and what came out is kept."""
        entry = self._entries[surface]
        entry.state = "trained"
        self._changed += 1
        how = "" if entry.standing is None else f": {entry.standing.epoch} epochs, {entry.standing.seconds:.0f} s"
        ap = entry.standing and entry.standing.val_ap
        self.say(f"{surface} is trained{how}{'' if ap is None else f', validation AP {ap:.3f}'}")

    def fail(self, surface: str, reason: str) -> None:
        """It cannot be trained; the others can. Where several workers train it, the first to say so is listened to."""
        entry = self._entries[surface]
        if entry.state == "failed":
            return
        entry.state, entry.reason = "failed", reason
        self._changed += 1
        self.say(f"{surface} failed: {reason}")

    def stop(self, surface: str) -> None:
        """Its training was ended where the time was up; it is not begun again by this start."""
        self._entries[surface].state = "waiting"
        self._changed += 1

    def died(self, ranks: Sequence[int], reason: str) -> None:
        """The processes of these workers have died by themselves. Their surfaces are begun again, a few times.

        Those of the others are ended with them, for a new group to begin: that is not their surfaces' fault.
        """
        for surface, entry in self._entries.items():
            if entry.state != "training" or entry.rank not in ranks:
                continue
            entry.deaths += 1
            if entry.deaths >= MAX_DEATHS:
                self.fail(surface, f"crashing: {entry.deaths} processes died over it ({reason}): too little memory?")
            else:
                entry.state = "waiting"
                self.say(f"{surface}: its process died ({reason}); it goes on from its last checkpoint")
            self._changed += 1

    def news(self) -> News:
        """What has happened; lines are given out once."""
        lines, self._lines = tuple(self._lines), []
        states = {surface: entry.state for surface, entry in self._entries.items()}
        return News(
            lines=lines,
            table=(self._summary(), *self._rows()),
            trained=tuple(surface for surface, state in states.items() if state == "trained"),
            failed={surface: entry.reason for surface, entry in self._entries.items() if entry.state == "failed"},
            unfinished=tuple(surface for surface, state in states.items() if state in ("waiting", "training")),
            changed=self._changed,
        )

    def _summary(self) -> str:
        states = [entry.state for entry in self._entries.values()]
        counts = {state: states.count(state) for state in ("training", "waiting", "failed")}
        rest = "".join(f", {count} {state}" for state, count in counts.items() if count)
        return f"{states.count('trained')}/{len(states)} surfaces trained{rest}"

    def _rows(self) -> list[str]:
        return [
            f"  {surface}: {entry.standing or 'reading its images'}"
            for surface, entry in self._entries.items()
            if entry.state == "training"
        ]

    def _release_from_others(self, group: str) -> None:
        """What an earlier group had begun waits again."""
        for entry in self._entries.values():
            if entry.state == "training" and entry.group != group:
                entry.state = "waiting"

    def _is_late(self) -> bool:
        return self.stop_at is not None and time.time() >= self.stop_at
