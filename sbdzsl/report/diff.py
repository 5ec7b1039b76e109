"""What changed between two audits: which images have another verdict, and why.

Rows are joined by `uri` (or by `image_id`, where files have moved and ids are of their content) in as many parts as
memory needs: a part holds the rows whose key falls into it by hash. Counts are exact; of changed images at most
`MAX_CHANGES` are listed, the first by key.

An image has changed if its verdict is another, or its surface; a surface whose name in A is not in B, while its name in
B is not in A, was renamed and is the same. The reason is the first of these that applies:

    only-in-a, only-in-b     the other audit has no row of it
    file-changed             another file stands at the same uri
    not-judged               one of the audits could not judge it
    threshold-moved          the score of A, against the threshold of B, gives the verdict of B; the other way, A's
    score-moved              the score of B, against the threshold of A, gives the verdict of B; the other way, A's
    score-and-threshold-moved   it takes both, or either would do
    other-surface            the image was taken for another surface
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from sbdzsl.report.figures import collect
from sbdzsl.spreadsheet import table_csv

#: Changed images that are listed, and rows of one audit that are joined at once.
MAX_CHANGES, ROWS_AT_ONCE = 100_000, 250_000

_COMPARED = (
    *("verdict", "surface", "defect_score", "defect_threshold", "unseen_score", "unseen_threshold"),
    *("error_code", "bundle"),
)

Key = Literal["uri", "image_id"]


@dataclass(frozen=True, slots=True)
class AuditDiff:
    """Two audits, A and B, compared.

    `verdicts` counts images by verdict in A and in B, None where there is no row. `reasons` counts the changed images,
    the most frequent reason first. `renamed` are the surfaces with another name: in A, in B, images. `bundles_a` and
    `bundles_b` are the digests that the rows name. `changes` lists changed images (see `changes_csv`).
    """

    verdicts: tuple[tuple[str | None, str | None, int], ...]
    reasons: tuple[tuple[str, int], ...]
    renamed: tuple[tuple[str, str, int], ...]
    bundles_a: tuple[str, ...]
    bundles_b: tuple[str, ...]
    changes: pl.DataFrame

    @property
    def num_compared(self) -> int:
        """Images with a row in both audits."""
        return sum(number for before, after, number in self.verdicts if before is not None and after is not None)

    @property
    def num_changed(self) -> int:
        """Changed images, those with a row in one audit alone among them."""
        return sum(number for _, number in self.reasons)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the list of changes."""
        return {
            "num_compared": self.num_compared,
            "num_changed": self.num_changed,
            "num_listed": self.changes.height,
            "same_bundle": self.bundles_a == self.bundles_b,
            "bundles": {"a": list(self.bundles_a), "b": list(self.bundles_b)},
            "verdicts": [{"a": before, "b": after, "images": number} for before, after, number in self.verdicts],
            "reasons": dict(self.reasons),
            "renamed_surfaces": [{"a": before, "b": after, "images": num} for before, after, num in self.renamed],
        }

    def to_text(self) -> str:
        """The result for a person, in a few lines."""
        bundles = "the same bundle" if self.bundles_a == self.bundles_b else "other bundles"
        lines = [f"{self.num_compared:,} images are in both audits, judged by {bundles}; {self.num_changed:,} changed"]
        lines += [f"  {number:>9,}  {reason}: {REASONS[reason]}" for reason, number in self.reasons]
        moved = [(before, after, number) for before, after, number in self.verdicts if before != after]
        lines += [f"  {number:>9,}  {before or 'no row'} -> {after or 'no row'}" for before, after, number in moved]
        lines += [f"  {number:>9,}  surface {before!r} is now {after!r}" for before, after, number in self.renamed]
        return "\n".join(lines)

    def changes_csv(self) -> bytes:
        """The listed changes as CSV (UTF-8): key, verdicts, reason, `words`, then the other columns of A and of B."""
        return table_csv(self.changes)


#: What each reason means.
REASONS = {
    "only-in-a": "B has no row of it",
    "only-in-b": "A has no row of it",
    "file-changed": "another file at the same place",
    "not-judged": "one of the audits could not judge it",
    "threshold-moved": "the threshold alone explains it",
    "score-moved": "the score alone explains it",
    "score-and-threshold-moved": "score and threshold moved",
    "other-surface": "taken for another surface",
}


def diff(rows_a: pl.LazyFrame, rows_b: pl.LazyFrame, key: Key = "uri") -> AuditDiff:
    """Compare the rows of two audits, both with the columns of `VERDICT_SCHEMA`.

    An image with several rows in one audit counts by the first of them: that flaw is the audit's own report's to tell.
    """
    sides = (_side(rows_a, key), _side(rows_b, key))
    largest = max(int(collect(side.select(pl.len())).item()) for side in sides)
    num_parts = max(1, -(-largest // ROWS_AT_ONCE))
    renames = _renames(*sides)
    verdicts: Counter[tuple[str | None, str | None]] = Counter()
    reasons: Counter[str] = Counter()
    renamed: Counter[tuple[str, str]] = Counter()
    changes = _changes(_joined(sides, key, 1, 0, renames).limit(0), key).collect()
    for part in range(num_parts):
        joined = collect(_joined(sides, key, num_parts, part, renames))
        verdicts.update({(a, b): n for a, b, n in joined.group_by("verdict_a", "verdict_b").len().iter_rows()})
        other_name = joined.filter("renamed").group_by("surface_a", "surface_b").len()
        renamed.update({(a, b): n for a, b, n in other_name.iter_rows()})
        changed = _changes(joined.lazy(), key).collect()
        reasons.update(dict(changed.group_by("reason").len().iter_rows()))
        changes = pl.concat([changes, changed]).sort(key).head(MAX_CHANGES)
    return AuditDiff(
        verdicts=tuple((a, b, n) for (a, b), n in sorted(verdicts.items(), key=lambda one: (-one[1], str(one[0])))),
        reasons=tuple(sorted(reasons.items(), key=lambda one: (-one[1], one[0]))),
        renamed=tuple((a, b, n) for (a, b), n in sorted(renamed.items())),
        bundles_a=_bundles(rows_a),
        bundles_b=_bundles(rows_b),
        changes=changes,
    )


def _side(rows: pl.LazyFrame, key: Key) -> pl.LazyFrame:
    other = "image_id" if key == "uri" else "uri"
    # An unseen image has a nearest surface, which says nothing about what it was taken for.
    named = pl.when(pl.col("verdict").is_in(["good", "defect"])).then(pl.col("surface")).alias("surface")
    return rows.select(key, other, *_COMPARED).with_columns(named)


def _joined(
    sides: tuple[pl.LazyFrame, pl.LazyFrame], key: Key, num_parts: int, part: int, renames: pl.LazyFrame
) -> pl.LazyFrame:
    """Rows of both sides by key, columns with `_a` and `_b`; `there_a`, `there_b`, `renamed` (bool)."""
    a, b = (
        side.filter(pl.col(key).hash(seed=2) % num_parts == part)
        .unique(key, keep="first", maintain_order=True)
        .rename(lambda name, end=end: name if name == key else name + end)  # type: ignore[misc]
        .with_columns(pl.lit(value=True).alias(f"there{end}"))
        for side, end in zip(sides, ("_a", "_b"), strict=True)
    )
    return (
        a.join(b, on=key, how="full", coalesce=True)
        .with_columns(pl.col("there_a", "there_b").fill_null(value=False))
        .join(renames, on=["surface_a", "surface_b"], how="left")
        .with_columns(pl.col("renamed").fill_null(value=False))
    )


def _renames(a: pl.LazyFrame, b: pl.LazyFrame) -> pl.LazyFrame:
    """Pairs of names that only A and only B has: which of them belong together shows in the rows."""
    only_a, only_b = (
        collect(one.select("surface").unique().drop_nulls().join(other.select("surface").unique(), "surface", "anti"))
        for one, other in ((a, b), (b, a))
    )
    pairs = only_a.rename({"surface": "surface_a"}).join(only_b.rename({"surface": "surface_b"}), how="cross")
    return pairs.with_columns(renamed=pl.lit(value=True)).lazy()


def _changes(joined: pl.LazyFrame, key: Key) -> pl.LazyFrame:
    other_verdict = pl.col("verdict_a").ne_missing(pl.col("verdict_b"))
    other_surface = (
        pl.col("surface_a").is_not_null()
        & pl.col("surface_b").is_not_null()
        & (pl.col("surface_a") != pl.col("surface_b"))
        & ~pl.col("renamed")
    )
    same_bundle = pl.when(pl.col("bundle_a") == pl.col("bundle_b")).then(pl.lit("same bundle"))
    return (
        joined.filter(other_verdict | other_surface)
        .with_columns(reason=_reason(other_surface, key), by=same_bundle.otherwise(pl.lit("other bundle")))
        .with_columns(words=_words())
        .select(
            *(key, "verdict_a", "verdict_b", "reason", "words", "surface_a", "surface_b"),
            *(f"{name}_{end}" for name in _COMPARED[2:] for end in "ab"),
            *(f"{'image_id' if key == 'uri' else 'uri'}_{end}" for end in "ab"),
        )
    )


def _reason(other_surface: pl.Expr, key: Key) -> pl.Expr:
    file_changed = pl.col("image_id_a") != pl.col("image_id_b") if key == "uri" else pl.lit(value=False)
    either = [pl.col("verdict_a"), pl.col("verdict_b")]
    return (
        pl.when(~pl.col("there_b"))
        .then(pl.lit("only-in-a"))
        .when(~pl.col("there_a"))
        .then(pl.lit("only-in-b"))
        .when(file_changed)
        .then(pl.lit("file-changed"))
        .when((either[0] == "error") | (either[1] == "error"))
        .then(pl.lit("not-judged"))
        .when((either[0] == "unseen") | (either[1] == "unseen"))
        .then(_moved("unseen"))
        .when(other_surface)
        .then(pl.lit("other-surface"))
        .otherwise(_moved("defect"))
    )


def _moved(stage: str) -> pl.Expr:
    """Whether score or threshold of a stage turned its decision, which is another in B than in A."""

    def above(score: str, threshold: str) -> pl.Expr:
        return pl.col(f"{stage}_score_{score}") > pl.col(f"{stage}_threshold_{threshold}")

    by_threshold, by_score = above("a", "b") == above("b", "b"), above("b", "a") == above("b", "b")
    return (
        pl.when(by_threshold & ~by_score)
        .then(pl.lit("threshold-moved"))
        .when(by_score & ~by_threshold)
        .then(pl.lit("score-moved"))
        .otherwise(pl.lit("score-and-threshold-moved"))
    )


def _words() -> pl.Expr:
    """The reason of one image with its figures."""

    def figures(stage: str) -> pl.Expr:
        names = [f"{stage}_{what}_{end}" for what in ("score", "threshold") for end in "ab"]
        return pl.format(
            stage + " score {} -> {}, threshold {} -> {}; {}", *(_figure(name) for name in names), pl.col("by")
        )

    def error(end: str) -> pl.Expr:
        return pl.col(f"error_code_{end}").fill_null("judged")

    reason = pl.col("reason")
    unseen = (pl.col("verdict_a") == "unseen") | (pl.col("verdict_b") == "unseen")
    return (
        pl.when(reason.is_in(["only-in-a", "only-in-b", "file-changed"]))
        .then(reason.replace_strict(REASONS, return_dtype=pl.String))
        .when(reason == "not-judged")
        .then(pl.format("{} -> {}", error("a"), error("b")))
        .when(reason == "other-surface")
        .then(pl.format("taken for {} -> {}; {}", pl.col("surface_a"), pl.col("surface_b"), pl.col("by")))
        .when(unseen)
        .then(figures("unseen"))
        .otherwise(figures("defect"))
    )


def _figure(name: str) -> pl.Expr:
    return pl.col(name).round(4).cast(pl.String).fill_null("none")


def _bundles(rows: pl.LazyFrame) -> tuple[str, ...]:
    return tuple(collect(rows.select(pl.col("bundle").unique()))["bundle"].sort())
