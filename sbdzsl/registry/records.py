"""The records of one alias: who pointed it to which bundle, when and why. Numbered, written once, never changed.

The next record is created under the number after the last one, which a store lets exactly one writer do. Each record
holds the digest of the one before, so that the history is whole or visibly not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import pydantic

from sbdzsl import lake
from sbdzsl.errors import ConfigError, LakeError, RegistryError

RECORD_VERSION = 1

#: Fewer digits of a digest name nothing.
MIN_PREFIX = 6

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},64}}")
_RECORD = re.compile(r"(\d{8})\.json")
_READERS = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One step in the history of an alias.

    `bundle` and `replaces` are digests, the latter of the bundle that the alias pointed to before; `at` is the time
    (ISO, UTC); `restores` is the number of the record that a rollback goes back to; `gate` is what was measured for the
    promotion. `previous` is the `seal` of the record before, and a seal the sha256 of a record as it is stored.
    """

    alias: str
    number: int
    bundle: str
    action: Literal["promote", "rollback"]
    at: datetime
    by: str
    reason: str
    replaces: str | None = None
    restores: int | None = None
    forced: bool = False
    gate: Mapping[str, Any] | None = None
    previous: str | None = None
    record_version: int = RECORD_VERSION
    seal: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it is stored: plain JSON values, without the seal."""
        values = asdict(self) | {"at": self.at.isoformat()}
        del values["seal"]
        return values


_stored = pydantic.TypeAdapter(Record)


def looks_like_digest(name: str) -> bool:
    """Whether a name stands for the bundle whose digest begins so."""
    return _PREFIX.fullmatch(name) is not None


def is_alias(name: str) -> bool:
    """Whether a name may be that of an alias: a plain word that is no digest."""
    return _ALIAS.fullmatch(name) is not None and not looks_like_digest(name)


def check_alias(name: str) -> None:
    """Raises `ConfigError` where `is_alias` says no."""
    if not is_alias(name):
        raise ConfigError(
            "bad-config",
            f"found alias {name!r}, expected a lower-case letter and then letters, digits, - or _, such as production "
            f"(but not {MIN_PREFIX} or more of 0-9 and a-f alone, which stand for a digest)",
        )


class Line:
    """All records of one alias below `url`. Safe to use from many processes and machines at once."""

    def __init__(self, url: str, alias: str) -> None:
        check_alias(alias)
        self.url, self.alias = url, alias

    def newest(self) -> Record | None:
        """The record in force; None where there is none. Raises `RegistryError` "damaged-registry", `LakeError`."""
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else None

    def history(self) -> tuple[Record, ...]:
        """All records, the oldest first. Raises `RegistryError` "damaged-registry", `LakeError`."""
        numbers = self._numbers()
        if numbers != list(range(1, len(numbers) + 1)):
            raise RegistryError(
                "damaged-registry", f"{self.url} lacks records: found {len(numbers)}, the last is number {numbers[-1]}"
            )
        with ThreadPoolExecutor(_READERS) as pool:
            return tuple(pool.map(self._read, numbers))

    def append(self, newest: Record | None, record: Record) -> Record:
        """Create `record` as the one after `newest`, and return it as it is stored.

        Raises `RegistryError` "promoted-meanwhile" where there is one already, `LakeError` "unsupported-store" where
        the store would let two win.
        """
        record = replace(record, number=1)
        if newest is not None:
            record = replace(record, number=newest.number + 1, replaces=newest.bundle, previous=newest.seal)
        data = json.dumps(record.to_json(), indent=2, allow_nan=False).encode()
        lake.probe_write_once(self.url)
        if not lake.write_once(self._url_of(record.number), data):
            raise self.moved(self.newest())
        return replace(record, seal=_seal(data))

    def moved(self, newest: Record | None) -> RegistryError:
        """The refusal for whoever decided on the ground of another record than `newest`."""
        said = f"{newest.by} pointed it to {newest.bundle[:16]} by record {newest.number}" if newest else "no record"
        return RegistryError(
            "promoted-meanwhile", f"alias {self.alias} moved meanwhile: {said}. Nothing was done; look and decide again"
        )

    def problems(self) -> Iterator[str]:
        """What is wrong with the line, in words: gaps, records that cannot be read, or that were changed."""
        previous: Record | None = None
        for place, number in enumerate(self._numbers(), start=1):
            if number != place:
                yield f"record {place} is missing"
                return
            try:
                record = self._read(number)
            except (RegistryError, LakeError) as error:
                yield f"{error.code}: {error.message}"
                return
            if record.previous != (previous.seal if previous else None):
                yield f"record {number} does not follow from the one before: one of the two was changed"
            previous = record

    def _numbers(self) -> list[int]:
        found = (_RECORD.fullmatch(file.uri.rsplit("/", 1)[-1]) for file in files_below(self.url))
        return sorted(int(match[1]) for match in found if match)

    def _read(self, number: int) -> Record:
        url = self._url_of(number)
        data = lake.read_bytes(url)
        try:
            record = replace(_stored.validate_json(data), seal=_seal(data))
        except ValueError as error:
            raise RegistryError("damaged-registry", f"{url} is no record: {error}; restore it from a backup") from None
        is_whole = re.fullmatch(r"[0-9a-f]{64}", record.bundle) and 0 < (record.restores or 1) <= number
        found = (record.record_version, record.alias, record.number)
        if found != (RECORD_VERSION, self.alias, number) or not is_whole or record.restores == number:
            raise RegistryError(
                "damaged-registry",
                f"{url} holds record {record.number} of {record.alias}, version {record.record_version}, bundle "
                f"{record.bundle}, restoring {record.restores}; expected record {number} of {self.alias}, version "
                f"{RECORD_VERSION}; restore it from a backup",
            )
        return record

    def _url_of(self, number: int) -> str:
        return lake.join(self.url, f"{number:08d}.json")


def before(line: Sequence[Record]) -> Record | None:
    """The record that a rollback goes back to; None where the alias points to its first bundle.

    A rollback stands for the record that it went back to: two in a row go back two steps.
    """
    origin = line[-1]
    while origin.restores is not None:
        origin = line[origin.restores - 1]
    return line[origin.number - 2] if origin.number > 1 else None


def needed(line: Sequence[Record], now: datetime, keep_days: float, keep_last: int) -> set[str]:
    """Bundles that the alias points to, pointed to within `keep_days`, or that are the last `keep_last` of its line."""
    last = dict.fromkeys(record.bundle for record in reversed(line))
    since = now - timedelta(days=keep_days)
    ended = [*(record.at for record in line[1:]), now]
    lately = (record.bundle for record, end in zip(line, ended, strict=True) if end >= since)
    return {*list(last)[:keep_last], *lately}


def files_below(url: str) -> list[lake.StoredFile]:
    """As `lake.list_files`; where there is no such folder there are no files."""
    try:
        return lake.list_files(url)
    except LakeError as error:
        if error.code == "not-found":
            return []
        raise


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


def _seal(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
