"""The folder of a run: what it was begun for, and a record of each step that has ended. Each file is written once.

    run.json                    what the run is for; whoever comes with something else is refused
    steps/<step>-<key>.json     what went into a step and what came out; the key is a digest of the former

So the same command finds what is done, and a step into which something else goes is a step that is not done yet. A
record comes last of all that a step leaves: who dies before it has not done the step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import pydantic

from sbdzsl import __version__, lake
from sbdzsl.errors import LakeError, PipelineError

Report = Callable[[str], None]

RUN = "run.json"

_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that has ended. `seal` is the sha256 of the record as it is stored, for the steps that build on it."""

    step: str
    went_in: Mapping[str, Any]
    came_out: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime
    code_version: str = __version__
    seal: str = ""

    @property
    def seconds(self) -> float:
        """How long it took whoever ended it; a start that was killed before is not in it."""
        return (self.finished_at - self.started_at).total_seconds()


_stored = pydantic.TypeAdapter(StepRecord)


class RunFolder:
    """The folder at `url`; `report` takes a line for each step that is done already.

    `seal` stands for the run: it is the sha256 of its first file, which no other run has. `last` is that of the step
    that was done or found last.
    """

    def __init__(self, url: str, report: Report) -> None:
        self.url = lake.absolute_url(url)
        self.seal = self.last = ""
        self._report = report

    def path(self, *names: str) -> str:
        """Where something of the run lies."""
        return lake.join(self.url, *names)

    def begin(self, purpose: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """Claim the folder for `purpose`, or find that it was claimed for the same; `said` is noted beside it.

        Both are plain JSON. Raises `PipelineError`: "other-run", which says what differs, "damaged-run"; `LakeError`.
        """
        url = self.path(RUN)
        if not lake.exists(url):
            lake.probe_write_once(self.url)
            begun = {"purpose": dict(purpose), "begun_at": _now().isoformat(), **said}
            lake.write_once(url, _encoded(begun))
        data = lake.read_bytes(url)
        try:
            before = json.loads(data)["purpose"]
        except (ValueError, TypeError, KeyError):
            raise _damaged(url, "says not what the run is for") from None
        changed = list(_differences(before, json.loads(_encoded(purpose))))
        if changed:
            lines = "".join(f"\n  {name}: {old} then, {new} now" for name, old, new in changed)
            raise PipelineError(
                "other-run",
                f"{self.url} holds a run for something else:{lines}\nGive the run another folder, or go on with "
                "what it was begun for",
            )
        self.seal = self.last = hashlib.sha256(data).hexdigest()

    def step(
        self,
        name: str,
        went_in: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        is_there: Callable[[], bool] = lambda: True,
    ) -> StepRecord:
        """Do `work`, which returns what came out as plain JSON, unless there is a record and all that it left.

        `is_there` says whether what the step leaves beside its record is there. Raises what `work` does, `LakeError`,
        `PipelineError` "damaged-run" for a record that cannot be read.
        """
        url = self._record_url(name, went_in)
        found = self._read(url)
        if found is not None and is_there():
            self._report(f"{name}: done already, {found.finished_at:%Y-%m-%d %H:%M:%S} UTC")
        else:
            self._report(f"{name}: begins" if found is None else f"{name}: is recorded, but what it left is not there")
            started = _now()
            record = StepRecord(name, dict(went_in), dict(work()), started, _now())
            values = asdict(record)
            del values["seal"]
            lake.write_once(url, _encoded(values))
            found = self._read(url)
            assert found is not None
        self.last = found.seal
        return found

    def find(self, name: str, went_in: Mapping[str, Any]) -> StepRecord | None:
        """The record of a step, None where it has none. Raises as `step`."""
        return self._read(self._record_url(name, went_in))

    def history(self) -> tuple[StepRecord, ...]:
        """All steps that have ended, in the order in which they did. Raises as `step`."""
        files = lake.list_files(self.path("steps"))
        found = [record for file in files if (record := self._read(file.uri)) is not None]
        return tuple(sorted(found, key=lambda record: record.finished_at))

    def _record_url(self, name: str, went_in: Mapping[str, Any]) -> str:
        key = hashlib.sha256(_encoded({"run": self.seal, "step": name, **went_in})).hexdigest()
        return self.path("steps", f"{name}-{key[:_KEY_DIGITS]}.json")

    def _read(self, url: str) -> StepRecord | None:
        try:
            data = lake.read_bytes(url)
        except LakeError as error:
            if error.code == "not-found":
                return None
            raise
        try:
            return replace(_stored.validate_json(data), seal=hashlib.sha256(data).hexdigest())
        except ValueError:
            raise _damaged(url, "is no record of a step") from None


def _damaged(url: str, what: str) -> PipelineError:
    return PipelineError(
        "damaged-run", f"{url} {what}; restore it from a backup, or remove it: what it records is then done again"
    )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted names of the values that differ, with both."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        yield name, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    return "nothing" if value in (None, [], {}, "") else str(value)


def _encoded(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} in a record")


def _now() -> datetime:
    return datetime.now(timezone.utc)
