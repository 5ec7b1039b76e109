"""What the verbs share: options of one meaning everywhere, and the two streams they print to."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sbdzsl import config
from sbdzsl.runtime import Runtime

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(highlight=False, soft_wrap=True, stderr=True)


Adapter = Annotated[str, typer.Option(help="Layout of the source, such as folder; `sbdzsl datasets list` shows all.")]


def located(bundle: str | None) -> str | None:
    """Where the bundle lies; of one that a registry names, from now on the one that the name stands for now."""
    if bundle is None or "@" not in bundle:
        return bundle
    from sbdzsl import registry

    return registry.locate(bundle)


BundleUrl = Annotated[
    str, typer.Option("--bundle", callback=located, help="Folder or URL of a bundle, or REGISTRY@ALIAS, or @DIGEST.")
]
Include = Annotated[
    list[str] | None, typer.Option(help="Only what a glob matches, such as 'line7/**/*.png'; may be given again.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Nothing that a glob matches, such as 'raw/**'; may be given again.")
]
Manifests = Annotated[list[str], typer.Option("--manifest", help="Manifest (Parquet), may be given again.")]
Policy = Annotated[
    config.ThresholdRule | None,
    typer.Option(
        "--policy",
        parser=config.ThresholdRule.parse,
        metavar="POLICY",
        help=f"Threshold policy: {config.POLICY_FORMS}; the bundle's own if not given.",
    ),
]
PromiseName = Annotated[
    config.Promise | None,
    typer.Option(
        "--promise",
        help="What the router's false-alarm rate holds for: conditions as they were (plain) or changed (envelope).",
    ),
]
Device = Annotated[str, typer.Option(help="Device of the nets: cpu, cuda, cuda:1 ...")]
RuntimeName = Annotated[Runtime, typer.Option("--runtime", help="What runs the nets; others than torch on the CPU.")]
MaxMemory = Annotated[
    float | None, typer.Option(min=192, help="MB that judging one image may take; the bundle's own if not given.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]


def say(line: str) -> None:
    """Print a line as it is: what comes from a lake may look like markup."""
    stdout.print(line, markup=False)


def percent(share: float | None) -> str:
    """A share as a percentage with one digit; a dash for what is not defined."""
    return "–" if share is None else f"{share:.1%}"
