"""The registry itself: bundles that come, get names and go. See the package's docstring for the layout."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.errors import BundleError, ConfigError, RegistryError
from sbdzsl.registry import records
from sbdzsl.registry.records import Line, Record, files_below

#: How long a claim holds, and how long files without a card may be a copy that is still under way.
GRACE = timedelta(days=1)

_READERS = 8


@dataclass(frozen=True, slots=True)
class Version:
    """A bundle in a registry, and the aliases that point to it.

    `arrived_at` is when its card was written, None where the store does not say. `card` is None, and `problem` says
    why, where it cannot be read.
    """

    digest: str
    url: str
    arrived_at: datetime | None
    num_bytes: int
    aliases: tuple[str, ...]
    is_signed: bool
    card: Mapping[str, Any] | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A bundle that was asked for by name. `record` is None where it was named by its digest."""

    digest: str
    url: str
    record: Record | None


class Registry:
    """A folder on any lake. Safe to use from many processes and machines at once; to make one touches nothing."""

    def __init__(self, url: str) -> None:
        self.url = lake.absolute_url(url)

    def bundle_url(self, digest: str) -> str:
        """Where the bundle with this (whole) digest lies, or would."""
        return lake.join(self.url, "bundles", digest)

    def signature_url(self, digest: str) -> str:
        """Where the signature of this bundle lies, or would."""
        return lake.join(self.url, "signatures", f"{digest}.sig")

    def line(self, alias: str) -> Line:
        """The records of an alias. Raises `ConfigError` where it can be none."""
        return Line(lake.join(self.url, "aliases", alias), alias)

    def aliases(self) -> tuple[str, ...]:
        """Names of the aliases, sorted."""
        return tuple(sorted(self._folders("aliases")))

    def push(self, bundle_url: str) -> str:
        """Copy a bundle in and return its digest; one that is in there already is checked, and mended if damaged.

        Raises `BundleError`, `LakeError`.
        """
        digest = bundles.digest_of(bundles.read_card(bundle_url))
        self._claim(digest)
        bundles.copy(bundle_url, self.bundle_url(digest))
        return digest

    def versions(self) -> tuple[Version, ...]:
        """All bundles, the one that came last first. Raises `LakeError`, `RegistryError` "damaged-registry"."""
        pointed: dict[str, list[str]] = {}
        for alias in self.aliases():
            if record := self.line(alias).newest():
                pointed.setdefault(record.bundle, []).append(alias)
        signed = {_name(file).removesuffix(".sig") for file in files_below(lake.join(self.url, "signatures"))}
        kept = {digest: files for digest, files in self._folders("bundles").items() if _card_of(files)}

        def version(digest: str) -> Version:
            card, problem, files = None, None, kept[digest]
            try:
                card = bundles.read_card(self.bundle_url(digest))
            except BundleError as error:
                problem = f"{error.code}: {error.message}"
            return Version(
                digest=digest,
                url=self.bundle_url(digest),
                arrived_at=_card_of(files)[0].modified_at,
                num_bytes=sum(file.size_bytes or 0 for file in files),
                aliases=tuple(pointed.get(digest, ())),
                is_signed=digest in signed,
                card=card,
                problem=problem,
            )

        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(version, kept))
        earliest = datetime.min.replace(tzinfo=timezone.utc)
        return tuple(sorted(found, key=lambda one: (one.arrived_at or earliest, one.digest), reverse=True))

    def resolve(self, name: str) -> Resolved:
        """The bundle that an alias points to, or whose digest begins with `name`.

        Raises `RegistryError`: "no-version", "ambiguous-version", "damaged-registry" where the bundle is gone;
        `ConfigError` for what can be no name.
        """
        if not records.looks_like_digest(name):
            record = self.line(name).newest()
            if record is None:
                known = ", ".join(self.aliases()) or "none yet"
                raise RegistryError("no-version", f"{self.url} has no alias {name!r}; it has: {known}")
            self._require(record.bundle, f"alias {name}, record {record.number},")
            return Resolved(record.bundle, self.bundle_url(record.bundle), record)
        kept = (digest for digest, files in self._folders("bundles").items() if _card_of(files))
        found = [digest for digest in kept if digest.startswith(name)]
        if not found:
            raise RegistryError(
                "no-version", f"{self.url} holds no bundle {name}...; `sbdzsl registry list` shows what it holds"
            )
        if len(found) > 1:
            several = ", ".join(digest[:16] for digest in sorted(found))
            raise RegistryError("ambiguous-version", f"{name} is the beginning of {several}; give more digits")
        return Resolved(found[0], self.bundle_url(found[0]), None)

    def history(self, alias: str) -> tuple[Record, ...]:
        """All records of an alias, the oldest first; empty if there are none. Raises as `Line.history`."""
        return self.line(alias).history()

    def promote(
        self,
        name: str,
        alias: str,
        by: str,
        reason: str,
        *,
        gate: Mapping[str, Any] | None = None,
        forced: bool = False,
        after: int | None = None,
    ) -> Record:
        """Point an alias to a bundle of this registry and return the record; the present one where it does already.

        `after` is the number of the record that the decision was based on, 0 for none: where the alias has moved since,
        `RegistryError` "promoted-meanwhile" is raised, as where somebody else wins at this very moment. Raises as
        `resolve`, too, and `ConfigError`.
        """
        line, digest = self.line(alias), self.resolve(name).digest
        self._claim(digest)
        self._require(digest, "what is to be promoted")  # after the claim: a bundle that is there now stays
        newest = line.newest()
        if after is not None and after != (newest.number if newest else 0):
            raise line.moved(newest)
        if newest is not None and newest.bundle == digest:
            return newest
        record = Record(alias, 0, digest, "promote", records.now(), by, reason, forced=forced, gate=gate)
        return line.append(newest, record)

    def rollback(self, alias: str, by: str, reason: str) -> Record:
        """Point an alias to the bundle that it pointed to before; once more, to the one before that.

        Raises `RegistryError` "no-version" where there is none before, "damaged-registry" where it was removed,
        "promoted-meanwhile".
        """
        line = self.line(alias)
        history = line.history()
        target = records.before(history) if history else None
        if target is None:
            said = f"points to its first bundle, {history[-1].bundle[:16]}" if history else "has no record"
            raise RegistryError("no-version", f"alias {alias} {said}: there is none before it to go back to")
        self._claim(target.bundle)
        self._require(target.bundle, f"record {target.number} of {alias}")
        record = Record(alias, 0, target.bundle, "rollback", records.now(), by, reason, restores=target.number)
        return line.append(history[-1], record)

    def verify(self) -> tuple[str, ...]:
        """What is wrong, in words; empty where each file is what its card says, each line of records is unbroken, and
        each alias points to a bundle that is there. Reads everything. Raises `LakeError`."""
        problems = []
        for digest, files in sorted(self._folders("bundles").items()):
            place, url = f"bundles/{digest}", self.bundle_url(digest)
            if not _card_of(files):
                problems.append(f"{place}: no {bundles.CARD}: a copy under way, or one that was broken off")
                continue
            found = [f"{place}: {one.code}: {one.message}" for one in bundles.damage(url)]
            if not found and bundles.digest_of(bundles.read_card(url)) != digest:
                found = [f"{place}: its card is that of another bundle"]
            problems += found
        for alias in self.aliases():
            line = self.line(alias)
            found = [f"aliases/{alias}: {problem}" for problem in line.problems()]
            record = None if found else line.newest()
            if record is not None and not bundles.exists(self.bundle_url(record.bundle)):
                found = [f"aliases/{alias}: points to bundle {record.bundle}, which is not there"]
            problems += found
        return tuple(problems)

    def gc(self, keep_days: float = 30, keep_last: int = 3, dry_run: bool = False) -> tuple[str, ...]:
        """Remove bundles that nobody needs any more, and what broken copies left, and return their digests.

        Kept is what an alias points to, pointed to within `keep_days`, or has among the last `keep_last` bundles of its
        line, what came within `keep_days`, and what somebody claimed within `GRACE`. Records are never removed. Raises
        `LakeError`, and `RegistryError` "damaged-registry": with a record that cannot be read nothing is removed.
        """
        if keep_days < 0 or keep_last < 1:
            raise ConfigError("bad-config", f"found {keep_days} days and {keep_last} last, expected >= 0 and >= 1")
        now = records.now()
        lines = [self.history(alias) for alias in self.aliases()]
        needed = {digest for line in lines for digest in records.needed(line, now, keep_days, keep_last)}
        removed = []
        for digest, files in sorted(self._folders("bundles").items()):
            limit = timedelta(days=keep_days) if _card_of(files) else GRACE
            if digest in needed or not _is_older(files, now - limit) or self._is_claimed(digest):
                continue
            if dry_run or self._remove(digest, files):
                removed.append(digest)
        if not dry_run:
            for file in files_below(lake.join(self.url, "claims")):
                if _is_older([file], now - GRACE):
                    lake.remove(file.uri)
        return tuple(removed)

    def _remove(self, digest: str, files: Sequence[lake.StoredFile]) -> bool:
        """Remove a bundle, its card first: what is left if this dies is none. False where somebody claims it meanwhile.

        Whoever wants the bundle claims it, and then looks whether it is there. So either the claim is seen here and the
        card is put back, or they see that it is gone.
        """
        for card in _card_of(files):
            raw = lake.read_bytes(card.uri)
            lake.remove(card.uri)
            if self._is_claimed(digest):
                lake.write_once(card.uri, raw)
                return False
        for file in files:
            if self._is_claimed(digest):  # by a push, which brings all files anew
                return False
            if _name(file) != bundles.CARD:
                lake.remove(file.uri)
        lake.remove(self.signature_url(digest))
        return True

    def _claim(self, digest: str) -> None:
        lake.write_bytes(lake.join(self.url, "claims", digest, uuid.uuid4().hex), b"claimed")

    def _is_claimed(self, digest: str) -> bool:
        files = files_below(lake.join(self.url, "claims", digest))
        return any(not _is_older([file], records.now() - GRACE) for file in files)

    def _require(self, digest: str, what: str) -> None:
        if not bundles.exists(self.bundle_url(digest)):
            raise RegistryError(
                "damaged-registry",
                f"{what} is bundle {digest}, which {self.url} does not hold (any more); push it again, or promote "
                "another",
            )

    def _folders(self, kind: str) -> dict[str, list[lake.StoredFile]]:
        """Files by the folder directly below `kind` that they lie in."""
        found: dict[str, list[lake.StoredFile]] = {}
        root = lake.join(self.url, kind)
        for file in files_below(root):
            folder, _, rest = file.uri.removeprefix(f"{root}/").partition("/")
            if rest:
                found.setdefault(folder, []).append(file)
        return found


def _card_of(files: Sequence[lake.StoredFile]) -> list[lake.StoredFile]:
    return [file for file in files if _name(file) == bundles.CARD]


def _is_older(files: Sequence[lake.StoredFile], limit: datetime) -> bool:
    """Whether all were last written before `limit`; False where the store does not say."""
    return all(file.modified_at is not None and file.modified_at < limit for file in files)


def _name(file: lake.StoredFile) -> str:
    return file.uri.rsplit("/", 1)[-1]
