"""`sbdzsl watch`: what runs beside a camera. No net is loaded."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from sbdzsl.cli.options import Policy, say
from sbdzsl.errors import ConfigError


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that a camera writes into; those below it are left alone.")],
    endpoint: Annotated[str, typer.Option(help="URL of the service, such as http://127.0.0.1:8000.")],
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust; those of the system if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File that a line a verdict is appended to; verdicts.jsonl in the folder.")
    ] = None,
    done: Annotated[
        str, typer.Option(help="Answered files are put away by: move (done/, failed/), mark (.done), delete or keep.")
    ] = "move",
    pattern: Annotated[str, typer.Option(help="Glob of the names to send, among those of images.")] = "*",
    names: Annotated[
        str | None,
        typer.Option(help="What names say: a regex with groups named camera, trigger_id, part_id or sequence."),
    ] = None,
    camera: Annotated[str | None, typer.Option(help="Name of the camera.")] = None,
    surface: Annotated[str | None, typer.Option(help="The surface expected: compared, not trusted.")] = None,
    policy: Policy = None,
    bit_depth: Annotated[int | None, typer.Option(help="Significant bits of 16-bit files.")] = None,
    settle: Annotated[
        float, typer.Option(help="Seconds without change after which a file is whole; 0 if renamed into place.")
    ] = 1.0,
    interval: Annotated[float, typer.Option(help="Seconds between two looks at the folder.")] = 0.5,
    parallel: Annotated[int, typer.Option(help="Images under way at once.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds for one image, all attempts together.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="End when the folder holds nothing more to judge.")] = False,
) -> None:
    """Send what a camera writes into a folder to a service, each complete file once, through outages of either."""
    import stamina.instrumentation

    from sbdzsl import config
    from sbdzsl.client import InspectionClient
    from sbdzsl.watch import Watch, WatchSettings

    given = {"pattern": pattern, "names": names, "done": done, "settle_s": settle, "interval_s": interval}
    sent = {"camera": camera, "surface": surface, "policy": policy and str(policy), "bit_depth": bit_depth}
    settings = config.parse(WatchSettings, given | sent | {"parallel": parallel}, "watch")
    # The watch itself says when the service goes and comes back; a line for each attempt would bury that.
    stamina.instrumentation.set_on_retry_hooks([])
    stop, caught = threading.Event(), list[int]()

    def end(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        stop.set()
        # Whoever asks a second time does not want to wait for the images under way; nothing is lost by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    key = _read_key(api_key_file) if api_key_file else None
    with InspectionClient(endpoint, key, timeout, ca_file or True) as client:
        verdicts = Watch(folder, client, out, settings, say).run(stop, once)
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    say(f"{verdicts.total():,} verdicts{': ' if counts else ''}{counts}")
    if signal.SIGINT in caught:
        raise typer.Exit(130)


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("bad-config", f"--api-key-file {path}: {getattr(error, 'strerror', None) or error}") from None
