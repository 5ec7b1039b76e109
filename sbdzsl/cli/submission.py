"""`--submit`: hand the very command that was given to a cluster, as a job, and follow it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from sbdzsl import __version__
from sbdzsl.cli.options import say
from sbdzsl.config import Settings


def submit_verb(verb: str, words: list[str], address: str, inline: Mapping[str, Settings]) -> int:
    """Run `words` on the cluster whose dashboard is at `address`; the job's own exit code.

    `inline` are the settings of options that name files: they travel themselves, for no file does. The same command
    gives the same job id, so that a job that runs already is followed, not started twice.
    """
    from sbdzsl.cluster.jobs import submit

    words = _without(words, "--submit")
    for option, settings in inline.items():
        words = [*_without(words, option), option, settings.model_dump_json(exclude_defaults=True)]
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
