"""`audit`: judge an archive, estimate what that would take, hand it to a cluster, compare two audits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from sbdzsl import config, lake
from sbdzsl.cli.options import BundleUrl, Exclude, Include, Policy, PromiseName, RuntimeName, say, stdout
from sbdzsl.cli.submission import submit_verb

if TYPE_CHECKING:
    from sbdzsl.cluster.audit import AuditResult
    from sbdzsl.cluster.estimate import Estimate


class _RunByDefault(TyperGroup):
    """`sbdzsl audit --bundle ...` is `sbdzsl audit run --bundle ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


audit_app = typer.Typer(cls=_RunByDefault, help="Judge every image of an archive exactly once; compare two audits.")


def _share(text: str) -> float:
    """A share from "1%" or "0.01"."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}, expected a share such as 1% or 0.01") from None


def _surface_policy(text: str) -> tuple[str, str]:
    surface, equals, rule = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"found {text!r}, expected SURFACE=POLICY")
    return surface, str(config.ThresholdRule.parse(rule))


@audit_app.command("run")
def run(
    ctx: typer.Context,
    bundle: BundleUrl,
    out: Annotated[str, typer.Option(help="Folder or URL for verdicts and report; run again to resume.")],
    lake_url: Annotated[
        str | None,
        typer.Option("--lake", help="Folder or URL, TAR, or manifest.json of an S3 Inventory: each image is judged."),
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Manifest (Parquet), or a folder of them, in place of --lake.")
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="List again and judge what no run into --out has judged.")
    ] = False,
    include: Include = None,
    exclude: Exclude = None,
    sample: Annotated[
        float | None, typer.Option(parser=_share, metavar="SHARE", help="Share of the images, always the same: 1%.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many images at most.")] = None,
    newest_first: Annotated[bool, typer.Option("--newest-first", help="By time of change.")] = False,
    policy: Policy = None,
    surface_policy: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_surface_policy,
            metavar="SURFACE=POLICY",
            help="Threshold policy of one surface, may be given again.",
        ),
    ] = None,
    promise: PromiseName = None,
    max_errors: Annotated[
        float | None,
        typer.Option(parser=_share, metavar="SHARE", help="Stop when more images than this cannot be judged: 5%."),
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Begin no shard after so long; run again to go on.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge a few images and say what the whole would take; write nothing.")
    ] = False,
    config_file: Annotated[
        str | None, typer.Option("--config", help="Audit settings: a YAML file, or the settings themselves in braces.")
    ] = None,
    runtime: RuntimeName = "torch",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, host:6379; else RAY_ADDRESS, else this machine.")
    ] = None,
    submit: Annotated[
        str | None, typer.Option(help="Dashboard of a cluster, http://head:8265: run there as a job, and follow it.")
    ] = None,
    delta: Annotated[str | None, typer.Option(help="Delta table to append the verdicts to, one commit a run.")] = None,
) -> None:
    """Judge every image of an archive exactly once, on Ray, and write a report. Unreadable images are rows.

    `sbdzsl audit diff A B` compares two audits.
    """
    given = {
        "include": include,
        "exclude": exclude,
        "sample": sample,
        "limit": limit,
        "newest_first": newest_first or None,
        "surface_policies": dict(surface_policy or ()) or None,
        "max_errors": max_errors,
        "max_minutes": max_minutes,
    }
    settings = config.load(config.AuditSettings, config_file)
    changes = {name: value for name, value in given.items() if value is not None}
    settings = config.parse(config.AuditSettings, settings.model_dump() | changes, "command line")
    if submit is not None:
        raise typer.Exit(submit_verb("audit", ctx.obj, submit, {"--config": settings}, {"--bundle": bundle}))
    # Ray is imported by this verb alone, so that the others start without it.
    from sbdzsl.cluster.audit import run_audit
    from sbdzsl.cluster.estimate import estimate_audit
    from sbdzsl.cluster.request import AuditRequest

    request = AuditRequest(
        bundle,
        out,
        lake_url=lake_url,
        manifest_uri=manifest,
        settings=settings,
        policy=policy,
        runtime=runtime,
        promise=promise,
        only_new=only_new,
        delta_url=delta,
    )
    if dry_run:
        _print_estimate(estimate_audit(request, say))
    else:
        _print_result(run_audit(request, address, say))


def _print_result(result: AuditResult) -> None:
    table = Table("surface", "good", "defective", "unseen, nearest to it")
    for row in result.summary.surfaces:
        table.add_row(row.surface, f"{row.good:,}", f"{row.defect:,}", f"{row.unseen_nearest:,}")
    stdout.print(table)
    for error in result.summary.errors:
        say(f"could not be judged: {error.count:,} {error.code}, such as {error.examples[0].uri}")
    if not result.num_judged:
        say("nothing to do: this audit was finished before; its report was written again")
    say(result.summary.sentence)
    proof = result.reconciliation
    stdout.print(f"{proof.num_manifest:,} images, {proof.num_rows:,} rows, none missing, none doubled")
    say(f"report: {result.report_uri}")


def _print_estimate(found: Estimate) -> None:
    table = Table("what", "estimate", "from")
    for row in found.rows():
        table.add_row(*row)
    stdout.print(table)


@audit_app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of an audit.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of the audit to compare with it.")],
    out: Annotated[str | None, typer.Option(help="Also write each image that changed (CSV).")] = None,
) -> None:
    """Which images are judged otherwise by audit B than by audit A, and why."""
    from sbdzsl.cluster import ledger
    from sbdzsl.report import diff as diffs

    rows_a, rows_b = (ledger.audit_rows(lake.absolute_url(url)) for url in (first, second))
    found = diffs.diff(rows_a, rows_b)
    say(found.to_text())
    if out is not None:
        lake.write_bytes(out, found.changes_csv())
