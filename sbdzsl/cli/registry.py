"""`sbdzsl registry <verb>`: keep bundles, give them names, decide which one counts."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sbdzsl.cli.options import BundleUrl, Device, Policy, located, percent, say, stdout
from sbdzsl.config import ThresholdRule
from sbdzsl.errors import ConfigError

if TYPE_CHECKING:
    from sbdzsl.registry import Record
    from sbdzsl.registry.gate import Gate

registry_app = typer.Typer(no_args_is_help=True, help="Keep bundles, promote and roll back, sign and verify.")

RegistryUrl = Annotated[str, typer.Option("--registry", help="Folder or URL of the registry.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Alias, or first digits of a digest.")]
Alias = Annotated[str, typer.Option(help="Name that points to a bundle.")]
By = Annotated[str | None, typer.Option(help="Who decides; the user of this process if not given.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]

_DIGITS = 16


@registry_app.command("push")
def push(registry: RegistryUrl, bundle: BundleUrl) -> None:
    """Copy a bundle into a registry and print its digest; one that is there is checked, and mended if damaged."""
    from sbdzsl.registry import Registry

    typer.echo(Registry(registry).push(bundle))


@registry_app.command("list")
def list_versions(registry: RegistryUrl) -> None:
    """List the bundles, the one that came last first, with the aliases that point to them."""
    from sbdzsl.registry import Registry

    table = Table("bundle", "aliases", "came", "MB", "surfaces", "signed", "code")
    for version in Registry(registry).versions():
        came = version.arrived_at.isoformat(" ", "minutes")[:16] if version.arrived_at else "–"
        surfaces = version.problem or str(len((version.card or {})["detectors"]))
        code = str(version.card["code_version"]) if version.card else "–"
        megabytes, signed = f"{version.num_bytes / 1e6:.1f}", "yes" if version.is_signed else "no"
        table.add_row(version.digest[:_DIGITS], ", ".join(version.aliases), came, megabytes, surfaces, signed, code)
    stdout.print(table)


@registry_app.command("show")
def show(registry: RegistryUrl, name: Name) -> None:
    """Show what made a bundle, and for an alias who pointed it to what, when and why."""
    from sbdzsl import bundle as bundles
    from sbdzsl.registry import Registry

    opened = Registry(registry)
    found = opened.resolve(name)
    for key, value in _provenance(found.digest, bundles.read_card(found.url)):
        say(f"{key:22} {value}")
    if found.record is None:
        return
    for record in reversed(opened.history(name)):
        when, why = record.at.isoformat(" ", "seconds")[:19], record.reason or "no reason given"
        said = f"{_what(record)}, {when} by {record.by}: {why}{_gate(record)}"
        say(f"record {record.number}: {record.bundle[:_DIGITS]} {said}")


def _provenance(digest: str, card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the card says of how the bundle came about, in pairs of name and value."""
    made: dict[str, Any] = dict(card["provenance"])
    yield "bundle", digest
    yield "created at", f"{card['created_at']} by sbdzsl {card['code_version']}, schema {card['schema_version']}"
    yield "backbone", str(card["settings"]["router"]["backbone"])
    yield "data", f"manifest {made.pop('data_digest', 'not recorded')}"
    yield "seed", str(made.pop("seed", "not recorded"))
    images = made.pop("images", {})
    for surface, entry in sorted(card["detectors"].items()):
        counts = ", ".join(f"{number} {split}" for split, number in images.get(surface, {}).items()) or "no counts"
        threshold = entry["threshold"]
        rule = f"{ThresholdRule(**threshold['rule'])} on held-out images {threshold['data_digest'][:_DIGITS]}"
        yield f"surface {surface}", f"{counts}; threshold {threshold['value']:.3f} by {rule}"
    for number, step in enumerate(made.pop("steps", ()), start=1):
        yield f"changed since, step {number}", ", ".join(f"{key} {value}" for key, value in step.items())
    for key, value in made.items():
        yield key.replace("_", " "), str(value)


def _what(record: Record) -> str:
    restored = f" to record {record.restores}" if record.restores else ""
    return f"{record.action}{restored}{', forced' if record.forced else ''}"


def _gate(record: Record) -> str:
    if record.gate is None:
        return ""
    return "; gate: " + ("; ".join(record.gate["reasons"]) or f"passed on {record.gate['num_images']:,} images")


@registry_app.command("promote")
def promote(
    registry: RegistryUrl,
    alias: Alias,
    bundle: Annotated[
        str | None, typer.Option(callback=located, help="Folder or URL of a bundle, which is pushed first.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Alias or digest of one in the registry.")] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(help="Manifest (Parquet) that decides by its test rows; may be given again.")
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="How much worse a figure may be: 0.01 is one percentage point.")
    ] = 0.01,
    policy: Policy = None,
    by: By = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote what the gate refuses, on record; needs --reason.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Point an alias to a bundle that on a stated manifest is as good as the one it replaces; else exit code 3."""
    from sbdzsl.registry import Registry, gate

    opened, who = Registry(registry), decider(by)
    if (bundle is None) == (version is None):
        raise ConfigError("bad-config", "give either --bundle or --version")
    name = version or opened.push(bundle or "")
    record = gate.promote(
        opened,
        name,
        alias,
        who,
        reason,
        manifests=manifest or (),
        margin=margin,
        force=force,
        policy=policy,
        device=device,
        report=say,
        show=print_gate,
    )
    print_record(record)


@registry_app.command("rollback")
def rollback(registry: RegistryUrl, alias: Alias, reason: Reason, by: By = None) -> None:
    """Point an alias to the bundle that it pointed to before; once more, to the one before that."""
    from sbdzsl.registry import Registry

    print_record(Registry(registry).rollback(alias, decider(by), reason))


@registry_app.command("sign")
def sign(
    registry: RegistryUrl,
    name: Name,
    key: Annotated[Path, typer.Option(help="Private EC key (PEM, without a password).")],
) -> None:
    """Sign a bundle by a key of your own (OpenSSF model signing; no network). Needs the extra `signing`."""
    from sbdzsl.registry import Registry, signing

    opened = Registry(registry)
    say(f"signature -> {opened.signature_url(signing.sign(opened, name, key))}")


@registry_app.command("verify")
def verify(
    registry: RegistryUrl,
    public_key: Annotated[
        Path | None, typer.Option(help="Public EC key (PEM): whatever an alias points to must be signed by it.")
    ] = None,
) -> None:
    """Read everything and say what is wrong (exit code 1 if anything is): files, records, aliases, signatures."""
    from sbdzsl.errors import BundleError, RegistryError
    from sbdzsl.registry import Registry, signing

    opened = Registry(registry)
    problems = list(opened.verify())
    for alias in opened.aliases() if public_key else ():
        assert public_key is not None
        try:
            signing.check(opened, alias, public_key)
        except (BundleError, RegistryError) as error:
            problems.append(f"aliases/{alias}: {error.code}: {error.message}")
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(1)
    signed = ", each signed by this key" if public_key else ""
    say(f"{len(opened.versions())} bundles and {len(opened.aliases())} aliases are whole{signed}")


@registry_app.command("gc")
def gc(
    registry: RegistryUrl,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Keep what came, or an alias pointed to, within so many days.")
    ] = 30,
    keep_last: Annotated[int, typer.Option(min=1, help="Keep so many last bundles of each alias.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove bundles that nobody needs any more; never one that an alias points to, or pointed to lately."""
    from sbdzsl.registry import Registry

    removed = Registry(registry).gc(keep_days, keep_last, dry_run)
    for digest in removed:
        say(digest)
    say(f"{len(removed)} bundles {'would be removed' if dry_run else 'removed'}")


def decider(given: str | None) -> str:
    """Who decides: whom `--by` names, else the user of this process. Raises `ConfigError` where that is nobody."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise ConfigError("bad-config", "this process runs for nobody by name; say who decides by --by") from None


def print_gate(gate: Gate) -> None:
    """Print the figures of both bundles, and what is refused."""
    table = Table("figure", "in force", "candidate", "worse by", "")
    for row in gate.rows:
        fall = "–" if row.fall is None else f"{row.fall:+.2%}"
        table.add_row(row.figure, percent(row.champion), percent(row.candidate), fall, "refused" if row.refused else "")
    stdout.print(table)
    falls = [(old - new, name) for name, (old, new) in gate.surface_ap.items() if old is not None and new is not None]
    if falls and max(falls)[0] > 0:
        worst, surface = max(falls)
        say(f"largest fall of AP on one surface, which does not decide: {surface}, by {worst:.2%}")


def print_record(record: Record) -> None:
    """Print which bundle an alias points to from now on."""
    say(f"{record.alias} -> {record.bundle[:_DIGITS]}, record {record.number} by {record.by}: {_what(record)}")
