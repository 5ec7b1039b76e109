"""`--submit`: hand the very command that was given to a cluster, as a job, and follow it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

from sbdzsl import __version__
from sbdzsl.cli.options import say
from sbdzsl.config import Settings


def submit_verb(
    verb: str,
    words: list[str],
    address: str,
    inline: Mapping[str, Settings],
    resolved: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run `words` on the cluster whose dashboard is at `address`; the job's own exit code.

    `inline` are the settings of options that name files: they travel themselves, for no file does. `resolved` are the
    values of options that were given by a name of a registry, which may stand for something else by the next run. The
    same command gives the same job id, so that a job that runs already is followed, not started twice.
    """
    from sbdzsl.cluster.jobs import submit

    words = _without(words, "--submit")
    for option, settings in inline.items():
        words = [*_without(words, option), option, settings.model_dump_json(exclude_defaults=True)]
    for option, value in resolved.items():
        if value not in words:
            words = [*_without(words, option), option, value]
    command = ["python", "-m", "sbdzsl.cli", *words]
    name = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:16]
    return submit(command, address, f"sbdzsl-{verb}-{name}", {"sbdzsl": __version__, "verb": verb}, report=say)


def _without(words: list[str], option: str) -> list[str]:
    """The words of a command without one option and its value."""
    for place, word in enumerate(words):
        if word == option:
            return words[:place] + words[place + 2 :]
        if word.startswith(f"{option}="):
            return words[:place] + words[place + 1 :]
    return words
