"""`serve`, `keys`: judge images over HTTP, and say who may send them."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer
from rich.table import Table

from sbdzsl import config
from sbdzsl.cli.options import BundleUrl, Policy, PromiseName, RuntimeName, say, stdout

keys_app = typer.Typer(no_args_is_help=True, help="API keys: make, list and revoke them.")

KeyFilePath = Annotated[str, typer.Option("--file", help="File of API keys; made where there is none.")]


def serve(
    bundle: BundleUrl,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    shape: Annotated[
        Literal["process", "fused", "routed"],
        typer.Option(help="This process without Ray; or Ray Serve: both stages together, or a deployment a surface."),
    ] = "process",
    proxy: Annotated[
        Literal["haproxy", "ray"],
        typer.Option(help="Door of Ray Serve: haproxy is faster, and open to the network, so that it needs --keys."),
    ] = "haproxy",
    data: Annotated[
        str | None, typer.Option(help="Folder on a local disk for the journal; without it nothing is kept.")
    ] = None,
    keys: Annotated[str | None, typer.Option(help="File of API keys; `sbdzsl keys create` makes one.")] = None,
    policy: Policy = None,
    promise: PromiseName = None,
    runtime: RuntimeName = "torch",
    config_file: Annotated[
        str | None, typer.Option("--config", help="Service settings: a YAML file, or the settings in braces.")
    ] = None,
) -> None:
    """Judge images over HTTP. Ctrl-C ends it when the requests under way are answered."""
    from sbdzsl.serving import run
    from sbdzsl.serving.settings import ServeSettings

    given = {"data": data, "keys": keys, "policy": policy, "promise": promise}
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {"runtime": runtime} if runtime != "torch" else {}
    settings = config.load(ServeSettings, config_file)
    settings = config.parse(ServeSettings, settings.model_dump() | changes, "command line")
    if shape == "process":
        run.serve(bundle, settings, host, port, say)
        return
    from sbdzsl.cluster import fast_mode_alone

    if proxy == "haproxy":
        run.require_keys("0.0.0.0", settings)  # where it listens, whatever the host
        os.environ.update(fast_mode_alone())
    run.require_keys(host, settings)
    # Ray is imported here alone, and after its environment is set.
    from sbdzsl.cluster import serve as on_ray

    # Whoever can connect without keys is on this machine: that was made sure of above.
    args = on_ray.ServeArgs(bundle=bundle, shape=shape, service=settings, open_to_all=settings.keys is None)
    on_ray.run(args, host, port, say)


@keys_app.command("create")
def create(
    file: KeyFilePath,
    name: Annotated[str, typer.Option(help="Whose key it is, such as line7; stands beside what is done with it.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="infer, review or admin; may be given again.", show_default="infer")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; never if not given.")] = None,
) -> None:
    """Make a key and print it, this once: the file keeps a hash of it. A name has two live keys at most."""
    from sbdzsl.serving.keys import KeyFile, scopes

    typer.echo(KeyFile(file).create(name, scopes(scope or ["infer"]), days))


@keys_app.command("list")
def list_keys(file: KeyFilePath) -> None:
    """List the keys of a file, without what opens a door."""
    from sbdzsl.serving.keys import KeyFile

    table = Table("id", "name", "scopes", "created", "expires", "live")
    for key in KeyFile(file).read():
        expires = key.expires_at.date().isoformat() if key.expires_at else "never"
        live = "yes" if key.is_live() else "no"
        table.add_row(key.id, key.name, ", ".join(key.scopes), key.created_at.date().isoformat(), expires, live)
    stdout.print(table)


@keys_app.command("revoke")
def revoke(file: KeyFilePath, number: Annotated[str, typer.Argument(metavar="ID", help="Id of the key.")]) -> None:
    """Let a key open nothing any more; a running service sees it at its next request."""
    from sbdzsl.serving.keys import KeyFile

    key = KeyFile(file).revoke(number)
    say(f"key {key.id} of {key.name} is revoked")
